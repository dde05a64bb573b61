"""MLPs of experts against their definition in float64, and a row's result in any company."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from engine.kernels import products
from engine.kernels.experts import mlps
from engine.kernels.products import packed

EXPERTS, PER_ROW, DIM, WIDTH = 8, 3, 64, 48


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


def routed(rows, experts=EXPERTS, seed=0, dtype=torch.float32):
    """Rows, their experts and weights, and the weights of all experts."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, DIM, generator=generator)
    weights, chosen = torch.randn(rows, experts, generator=generator).softmax(dim=-1).topk(PER_ROW, dim=-1)
    gate_up = torch.randn(experts, 2 * WIDTH, DIM, generator=generator) / DIM**0.5
    down = torch.randn(experts, DIM, WIDTH, generator=generator) / WIDTH**0.5
    return x.to(dtype), chosen, weights, gate_up.to(dtype), down.to(dtype)


def by_formula(x, chosen, weights, gate_up, down):
    """Row by row and expert by expert, in float64."""
    out = torch.zeros_like(x, dtype=torch.float64)
    for row, (own, shares) in enumerate(zip(chosen.tolist(), weights.double().tolist(), strict=True)):
        for expert, share in zip(own, shares, strict=True):
            gate, up = (gate_up[expert].double() @ x[row].double()).chunk(2)
            out[row] += share * (down[expert].double() @ (F.silu(gate) * up))
    return out


WAYS = {"definition": mlps.by_definition, "segments": mlps.in_segments, "groups": mlps.in_groups}


@pytest.mark.parametrize("rows", [1, 5, 70])
@pytest.mark.parametrize("way", WAYS)
def test_they_are_their_formula(way, rows):
    given = routed(rows)
    torch.testing.assert_close(WAYS[way](*given).double(), by_formula(*given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_in_bfloat16_too(way):
    given = routed(70, dtype=torch.bfloat16)
    torch.testing.assert_close(WAYS[way](*given).double(), by_formula(*given), atol=4e-2, rtol=4e-2)


@pytest.mark.parametrize("way", WAYS)
def test_experts_without_rows_and_experts_with_all_of_them(way):
    x, chosen, weights, *stacked = routed(40)
    chosen[:, 0], chosen[:, 1], chosen[:, 2] = 7, 2, 3
    given = x, chosen, weights, *stacked
    torch.testing.assert_close(WAYS[way](*given).double(), by_formula(*given), atol=1e-5, rtol=1e-5)


def test_no_rows():
    x, chosen, weights, *stacked = routed(4)
    assert mlps.expert_mlps(x[:0], chosen[:0], weights[:0], *stacked).shape == (0, DIM)


def test_what_was_not_chosen_does_not_matter():
    """Also where an expert's numbers overflow."""
    x, chosen, weights, gate_up, down = routed(6)
    chosen[:] = torch.tensor([0, 1, 2])
    expected = mlps.by_definition(x, chosen, weights, gate_up, down)
    gate_up[5], down[6] = torch.inf, torch.nan
    for way in (mlps.in_segments, mlps.in_groups):
        torch.testing.assert_close(way(x, chosen, weights, gate_up, down), expected)
    gate_up[5], down[6] = torch.inf, 0.0
    torch.testing.assert_close(mlps.by_definition(x, chosen, weights, gate_up, down), expected)


@pytest.mark.parametrize(("is_packed", "threads"), [(False, 1), (True, 2)])
def test_a_row_is_the_same_bit_by_bit_in_any_company(is_packed, threads):
    x, chosen, weights, gate_up, down = routed(150, seed=3)
    own = ([packed(w) for w in gate_up], [packed(w) for w in down]) if is_packed else (gate_up, down)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = mlps.expert_mlps(x, chosen, weights, *own)
        rng = np.random.default_rng(0)
        for _ in range(12):
            some = torch.from_numpy(rng.permutation(150)[: rng.integers(1, 150)])
            assert torch.equal(mlps.expert_mlps(x[some], chosen[some], weights[some], *own), together[some])
        for row in range(0, 150, 29):
            alone = mlps.expert_mlps(x[row : row + 1], chosen[row : row + 1], weights[row : row + 1], *own)
            assert torch.equal(alone[0], together[row])
    finally:
        torch.set_num_threads(before)


def test_a_row_that_is_not_finite_spoils_no_other():
    x, chosen, weights, *stacked = routed(20)
    expected = mlps.expert_mlps(x, chosen, weights, *stacked)
    x[0] = torch.nan  # the row that pads products
    spoilt = mlps.expert_mlps(x, chosen, weights, *stacked)
    assert spoilt[0].isnan().all()
    assert torch.equal(spoilt[1:], expected[1:])


@pytest.mark.skipif(not products._HAS_ONEDNN, reason="torch was built without oneDNN")
def test_products_are_of_few_numbers_of_rows(monkeypatch):
    taken, product = set(), products._product
    monkeypatch.setattr(products, "_product", lambda x, *rest: taken.add(len(x)) or product(x, *rest))
    for rows in range(1, 90, 4):
        mlps.expert_mlps(*routed(rows))
    assert {8, 16, 24, 32} < taken <= {8, 16, 24, 32, 40, 48, 56, 64}


def test_which_way_is_taken_on_cuda(monkeypatch):
    """Grouped products where they do not wait for the host, and else the definition, which does not either."""
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert mlps.has_grouped_products(64, 48, torch.bfloat16, cuda)
    assert not mlps.has_grouped_products(64, 48, torch.float32, cuda)
    assert not mlps.has_grouped_products(64, 44, torch.bfloat16, cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert not mlps.has_grouped_products(64, 48, torch.bfloat16, cuda)
