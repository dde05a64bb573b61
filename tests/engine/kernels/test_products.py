"""torch's ways of computing attention against its formula in float64, in parts of every size and for grouped heads.

This project's own way, which comes before them all, is left out here; it has `test_native`.
"""

import time

import pytest
import torch

from engine.kernels import native
from engine.kernels import products as kernels
from engine.kernels.products import attention, linear, packed, rounded_rows, watched_attention
from tests.engine.formula import watched_by_formula


@pytest.fixture(autouse=True)
def without_our_own(monkeypatch):
    monkeypatch.setattr(native, "kernel", lambda: None)


def tensors(kv_heads, rows=13, visible=37):
    """Four heads; queries strided as the fused projection leaves them, keys and values a part of each head's slots."""
    torch.manual_seed(0)
    q = torch.randn(rows, 4 + 2 * kv_heads, 8)[:, :4]
    keys, values = torch.randn(2, kv_heads, 64, 8)[:, :, 5 : 5 + visible]
    return q, keys, values


@pytest.fixture(params=["few", "many in one part", "many in parts of a row", "many in parts of three rows"])
def way(request, monkeypatch):
    """Which branch runs; `few` is the batched products of every device, the others are a CPU's head by head."""
    parts = {"few": 2**19, "many in one part": 2**19, "many in parts of a row": 1, "many in parts of three rows": 300}
    monkeypatch.setattr(kernels, "FEW_WEIGHTS", 2**40 if request.param == "few" else 1)
    monkeypatch.setattr(kernels, "WEIGHTS_AT_ONCE", parts[request.param])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.inference_mode()
def test_attention_is_its_formula(kv_heads, way):
    q, keys, values = tensors(kv_heads)
    torch.testing.assert_close(attention(q, keys, values), watched_by_formula(q, keys, values)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weights_at_once", [1, 2**25])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.inference_mode()
def test_watched_attention_is_its_formula(kv_heads, weights_at_once, way, monkeypatch):
    monkeypatch.setattr(kernels, "WATCHED_WEIGHTS_ON_CPU", weights_at_once)
    q, keys, values = tensors(kv_heads)
    torch.testing.assert_close(
        watched_attention(q, keys, values), watched_by_formula(q, keys, values), atol=1e-6, rtol=1e-5
    )


@torch.inference_mode()
def test_no_device_is_without_it():
    out, weights = watched_attention(*(tensor.to("meta") for tensor in tensors(2)))
    assert (out.shape, weights.shape) == ((13, 4, 8), (13, 37))


def test_many_weights_take_the_cpus_own_way(monkeypatch):
    """Not for training, which needs a gradient, and not for bfloat16, which oneDNN gets from torch anyway."""
    taken, head_by_head = [], kernels._head_by_head
    monkeypatch.setattr(kernels, "_head_by_head", lambda *tensors: taken.append(1) or head_by_head(*tensors))
    q, keys, values = tensors(2)
    attention(q.requires_grad_(), keys, values).sum().backward()
    assert q.grad is not None
    with torch.inference_mode():
        attention(q.bfloat16(), keys.bfloat16(), values.bfloat16())
        attention(q, keys, values)
        assert not taken
        monkeypatch.setattr(kernels, "FEW_WEIGHTS", 13 * 37 * 2)
        attention(q, keys, values)
        assert len(taken) == kernels._HAS_ONEDNN


def test_linear_has_a_gradient_where_one_is_wanted():
    x, weight, bias = torch.randn(3, 5, requires_grad=True), torch.randn(4, 5), torch.randn(4)
    expected = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(linear(x, weight, bias), expected.float())
    linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 5))
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight, bias), expected.float())


@pytest.mark.slow
@torch.inference_mode()
def test_a_part_of_the_slots_costs_no_more_than_a_copy_of_it():
    """oneDNN takes some layouts by a plain loop, a thousand times slower than its kernels."""

    def seconds(*tensors):
        begun = time.process_time()
        attention(*tensors)
        return time.process_time() - begun

    q, (keys, values) = torch.randn(64, 4, 32), torch.randn(2, 4, 2048, 32)
    part = q, keys[:, 5:1990], values[:, 5:1990]
    copies = [tensor.contiguous() for tensor in part]
    times = [(seconds(*part), seconds(*copies)) for _ in range(5)]
    in_place, copied = map(min, zip(*times, strict=True))
    assert in_place < 20 * copied


@pytest.mark.parametrize("rows", [1, 5, 32, 300])
@pytest.mark.parametrize("has_bias", [False, True])
@torch.inference_mode()
def test_a_packed_weight_gives_the_same_product(rows, has_bias):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 48), torch.randn(80, 48), torch.randn(80) if has_bias else None
    expected = linear(x.double(), weight.double(), bias.double() if has_bias else None).float()
    torch.testing.assert_close(linear(x, packed(weight), bias), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_only_what_onednn_multiplies_is_packed_and_only_once():
    weight = torch.randn(8, 4)
    assert packed(weight).is_mkldnn == kernels._HAS_ONEDNN
    assert packed(packed(weight)).shape == weight.shape
    for other in (weight.bfloat16(), weight.to("meta")):
        assert packed(other) is other


def test_products_are_of_few_numbers_of_rows():
    """Each is a program that oneDNN makes, and keeps."""
    rounded = {rows: rounded_rows(rows) for rows in range(1, 4097)}
    assert len(set(rounded.values())) == 56
    assert all(rows <= padded < rows + max(8, rows / 8) for rows, padded in rounded.items())
    assert all(rounded[rows] == rows for rows in (8, 32, 64, 256, 1920, 2048, 4096)), (
        "blocks, and canvases of the bench"
    )


@pytest.mark.skipif(not kernels._HAS_ONEDNN, reason="torch was built without oneDNN")
@pytest.mark.parametrize("with_bias", [False, True])
@torch.inference_mode()
def test_rows_that_are_added_are_nobodys(monkeypatch, with_bias):
    taken = []
    product = kernels._product
    monkeypatch.setattr(kernels, "_product", lambda x, *rest: taken.append(len(x)) or product(x, *rest))
    weight, bias = torch.randn(24, 16), torch.randn(24) if with_bias else None
    for rows in range(1, 70):
        x = torch.randn(rows, 16)
        torch.testing.assert_close(linear(x, packed(weight), bias), torch.nn.functional.linear(x, weight, bias))
    assert set(taken) == {8, 16, 24, 32, 40, 48, 56, 64, 72}
