"""What a layer does to each row, for CPUs: the formulas at every width of vectors, and what the kernels take."""

import ctypes
import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from engine.kernels import native, products
from engine.kernels.native import Kernel, takes_rows

pytestmark = pytest.mark.usefixtures("_without_gradients")
SHAPES = pytest.mark.parametrize(("count", "heads", "head_dim"), [(1, 1, 2), (5, 3, 20), (37, 4, 32), (300, 12, 128)])


@pytest.fixture
def _without_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture
def kernel(compiled):
    return Kernel(compiled)


def heads_of(count, heads, head_dim):
    """A part of each row, as keys are of a fused product."""
    torch.manual_seed(0)
    return 3 * torch.randn(count, heads + 2, head_dim)[:, 1:-1]


@pytest.mark.parametrize("name", ["gated", "rotated", "written"])
def test_each_argument_has_the_type_of_its_parameter(kernel, name):
    """A parameter without one would be passed as an int: half of a number of 64 bits may then be anything."""
    source = Path(native.__file__).with_name("rows.cpp").read_text()
    [parameters] = re.findall(rf'extern "C" void {name}\(([^)]*)\)', source)
    kinds = {"float": ctypes.c_void_p, "int64_t": ctypes.c_int64, "int": ctypes.c_int}
    expected = [
        ctypes.c_void_p if "*" in parameter else kinds[parameter.removeprefix("const ").split()[0]]
        for parameter in map(str.strip, parameters.split(","))
    ]
    assert list(getattr(kernel, f"_{name}").argtypes) == expected


@SHAPES
def test_gates_are_their_formula(kernel, count, heads, head_dim):
    gate_up = heads_of(count, heads, head_dim).flatten(1)
    gate, up = gate_up.chunk(2, dim=-1)
    torch.testing.assert_close(kernel.gate(gate_up), F.silu(gate) * up, atol=1e-6, rtol=1e-6)


def test_gates_that_are_far_from_zero(kernel):
    gates = torch.tensor([-math.inf, -1e30, -200.0, -88.0, -87.0, 0.0, 88.0, 200.0, 1e30, math.inf, math.nan])
    gated = kernel.gate(torch.cat((gates, torch.ones(len(gates))))[None])[0]
    torch.testing.assert_close(gated[2:-1], F.silu(gates)[2:-1], atol=1e-6, rtol=1e-6)
    assert not gated[0].isfinite(), "what has overflown does not look sound"
    assert gated[-1].isnan()


@pytest.mark.parametrize("share", [1, 2, 4])
@SHAPES
def test_rotated_rows_are_torchs_bit_by_bit(kernel, count, heads, head_dim, share):
    """All numbers of a head, or a half or a quarter of them; the others stay as they are."""
    x, half = heads_of(count, heads, head_dim), head_dim // (2 * share)
    angles = torch.arange(float(count * half)).view(count, 1, half)
    cos, sin = angles.cos(), angles.sin()
    low, high, rest = x.split((half, half, head_dim - 2 * half), dim=-1)
    expected = torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=-1)
    assert torch.equal(kernel.rotate(x, cos, sin), expected)


@SHAPES
def test_rows_become_their_slots_and_no_others(kernel, count, heads, head_dim):
    new, pool = heads_of(count, heads, head_dim), torch.zeros(2, heads, 2 * count + 3, head_dim)
    scattered = torch.randperm(2 * count)[:count]
    for slots in (scattered, slice(3, 3 + count)):
        kept = pool.clone()
        kernel.write(kept[1], new, slots)
        expected = pool.clone()
        expected[1][:, slots] = new.transpose(0, 1)
        assert torch.equal(kept, expected)


def test_threads_change_nothing(kernel):
    before, x = torch.get_num_threads(), heads_of(700, 8, 64)
    cos, sin = torch.rand(2, 700, 1, 32)
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            kept = torch.zeros(8, 700, 64)
            kernel.write(kept, x, slice(0, 700))
            results.append((kernel.gate(x.flatten(1)), kernel.rotate(x, cos, sin), kept))
    finally:
        torch.set_num_threads(before)
    for own in results[1:]:
        assert all(map(torch.equal, own, results[0]))


def test_they_take_what_they_are_made_for_and_nothing_else():
    x = heads_of(5, 2, 8)
    assert takes_rows(x)
    assert takes_rows(x.flatten(1))
    assert not takes_rows(x.bfloat16())
    assert not takes_rows(x.to("meta"))
    assert not takes_rows(x.mT.contiguous().mT)
    assert not takes_rows(torch.randn(4, 6).T)
    with torch.inference_mode(False), torch.enable_grad():
        assert not takes_rows(x)


@pytest.mark.parametrize("is_there", [True, False])
def test_results_are_the_same_without_them(monkeypatch, is_there):
    assert native.kernel()
    if not is_there:
        monkeypatch.setattr(native, "kernel", lambda: None)
    x, kept = heads_of(9, 2, 8), torch.zeros(2, 12, 8)
    cos, sin = torch.rand(2, 9, 1, 4)
    low, high = x.chunk(2, dim=-1)
    rotated = products.rotated(x, cos, sin)
    assert torch.equal(rotated, torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1))
    gate, up = x.flatten(1).chunk(2, dim=-1)
    torch.testing.assert_close(products.gated(x.flatten(1)), F.silu(gate) * up)
    for slots in (slice(2, 11), torch.arange(2, 11)):
        products.write(kept.zero_(), x, slots)
        assert torch.equal(kept[:, 2:11], x.transpose(0, 1))


@pytest.mark.parametrize("name", ["gate", "rotate", "write"])
def test_ones_that_compute_something_else_are_not_used(monkeypatch, caplog, name):
    right = getattr(Kernel, name)

    def wrong(*arguments):
        result = right(*arguments)
        return arguments[1].add_(1) if result is None else result + 1

    monkeypatch.setattr(Kernel, name, wrong)
    native.kernel.cache_clear()
    try:
        assert native.kernel() is None
    finally:
        native.kernel.cache_clear()
    assert "computes something else than the code that it replaces" in caplog.text
