"""Codes of keys and values: golden tensors, what is coded by kernels against the definition, and what a code rests on.

`kv_format.safetensors` was computed by formulas of its own: rows of float32, their codes and scales in int8 and in fp8,
and attention over int8 through scattered slots with two query heads a head, from a float64 sum.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from engine.kernels import native
from engine.kernels.attention import Layout, PagedRows, Segment, Span, attend_rows, attend_spans, attend_watched
from engine.kernels.kv import cuda
from engine.kernels.kv.formats import LARGEST, Quantised, quantised, read, row_bytes, stored_dtype, write
from engine.kernels.native import Kernel
from engine.kernels.triton_available import has_triton

CPU = torch.device("cpu")
GOLDEN = load_file(Path(__file__).parents[3] / "data" / "kv_format.safetensors")
NAMES = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}
FORMATS = pytest.mark.parametrize("dtype", LARGEST, ids=NAMES.get)
pytestmark = pytest.mark.usefixtures("_without_gradients")


@pytest.fixture
def _without_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(params=["by definition", "by our kernel", *(["by Triton"] if has_triton() else [])])
def put(request, compiled):
    """Writes rows [rows, heads, head_dim] into slots of codes."""
    if request.param == "by Triton":
        from engine.kernels.kv.triton_write import write as by_triton

        return by_triton
    return write if request.param == "by definition" else Kernel(compiled).write


def empty(kv_heads, slots, head_dim, dtype):
    """Of what was there before: codes that mean nothing."""
    codes = torch.full((kv_heads, slots, head_dim), 77, dtype=torch.int8).view(dtype)
    return Quantised(codes, torch.full((kv_heads, slots), 7.0))


def bits(stored):
    return stored.codes.view(torch.uint8), stored.scales.view(torch.int32)


def same(one, other):
    return all(map(torch.equal, bits(one), bits(other)))


@FORMATS
def test_codes_scales_and_numbers_are_the_golden_ones(put, dtype):
    rows, name = GOLDEN["x"], NAMES[dtype]  # [rows, heads, head_dim], one of zeros, one of a single number
    kept = empty(rows.shape[1], len(rows), rows.shape[2], dtype)
    put(kept, rows, slice(0, len(rows)))
    codes, scales = kept.codes.view(torch.uint8).transpose(0, 1), kept.scales.T
    assert torch.equal(codes, GOLDEN[f"{name}.codes"].view(torch.uint8))
    assert torch.equal(scales, GOLDEN[f"{name}.scales"])
    assert torch.equal(read(kept, slice(None), torch.float32).transpose(0, 1), GOLDEN[f"{name}.back"])
    assert (codes.view(torch.int8) != -128).all() or dtype != torch.int8


def by_pages(q, keys, values, layout):
    from engine.kernels.triton_attention import attend_pages

    [span] = layout.spans
    tensors = (torch.tensor(part, dtype=torch.int32) for part in ([[0, len(q), 0]], layout.horizons, span.slots[None]))
    return attend_pages(q, keys, values, Layout(layout.horizons, layout.spans, CPU, PagedRows(*tensors, 1)))


def watched(q, keys, values, layout):
    [segment] = layout.segments
    return attend_watched(q, keys, values, Segment(0, len(q), segment.visible))[0]


KERNELS = {"row by row": attend_rows, "ours": attend_spans, "torch's": attend_spans, "watched": watched}


@pytest.mark.parametrize("scattered", [True, False])
@pytest.mark.parametrize("name", [*KERNELS, *(["Triton's"] if has_triton() else [])])
def test_attention_over_codes_is_the_golden_one(monkeypatch, name, scattered):
    """Also where the slots are neighbours, which are then read as a slice."""
    if name == "torch's":
        monkeypatch.setattr(native, "kernel", lambda: None)
    q, slots, kept = GOLDEN["attend.q"], GOLDEN["attend.slots"].numpy(), []
    for part in ("key", "value"):
        codes, scales = GOLDEN[f"attend.{part}s"], GOLDEN[f"attend.{part}_scales"]
        if not scattered:
            codes, scales = codes[:, slots].contiguous(), scales[:, slots].contiguous()
        kept.append(Quantised(codes, scales))
    if not scattered:
        slots = np.arange(len(slots))
    layout = Layout(np.full(len(q), len(slots)), [Span(0, len(q), slots)], CPU)
    out = KERNELS.get(name, by_pages)(q, *kept, layout)
    torch.testing.assert_close(out, GOLDEN["attend.out"], atol=1e-5, rtol=1e-5)


@FORMATS
@given(
    seed=st.integers(0, 2**32 - 1),
    exponents=st.sampled_from([(-3, 3), (-44, 38), (-46, -36)]),
    prune=st.sampled_from([0.0, 0.1, 0.5]) | st.floats(0.0, 0.999),
)
def test_our_kernel_codes_as_the_definition_does(dtype, seed, exponents, prune):
    """Bit by bit: numbers of like sizes, of all that float32 has, and such that scales are nearly nothing."""
    assert native.kernel()
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(*exponents, (9, 2, 1)) * 10.0 ** rng.uniform(-3, 0, (9, 2, 24))
    rows = torch.from_numpy((rng.choice([-1, 0, 1], sizes.shape) * sizes).astype(np.float32))
    for at, number in zip(rng.integers(0, 9, 3), (torch.nan, torch.inf, -torch.inf), strict=True):
        rows[at, 0, rng.integers(24)] = number
    ours, theirs = empty(2, 9, 24, dtype), empty(2, 9, 24, dtype)
    native.kernel().write(ours, rows, slice(0, 9), prune)
    write(theirs, rows, slice(0, 9), prune)
    assert torch.equal(ours.codes.view(torch.uint8), theirs.codes.view(torch.uint8))
    torch.testing.assert_close(ours.scales, theirs.scales, atol=0, rtol=0, equal_nan=True)


def test_a_kernel_is_held_to_the_definition_before_it_is_used():
    """As at a start on CUDA: bit by bit, and one bit is enough; so are numbers that it does not prune."""

    def one_bit(kept, rows, slots, prune):
        write(kept, rows, slots, prune)
        kept.codes.view(torch.int8)[1, 4, 79] ^= 1

    assert cuda.agrees(write, CPU)
    assert not cuda.agrees(one_bit, CPU)
    assert not cuda.agrees(lambda kept, rows, slots, _: write(kept, rows, slots), CPU)


@pytest.mark.slow
@pytest.mark.skipif(not has_triton(), reason="torch's builds for CPUs bring no Triton")
def test_tritons_kernel_is_held_to_the_definition_before_it_is_used():
    from engine.kernels.kv.triton_write import write as by_triton

    assert cuda.agrees(by_triton, CPU)


@FORMATS
def test_halves_go_to_the_even_code(put, dtype):
    top, kept = LARGEST[dtype], empty(1, 1, 8, dtype)
    halves = {torch.int8: [0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 3.0], torch.float8_e4m3fn: [17, 19, -17, 2**-10, 1, 2, 3]}
    evens = {torch.int8: [0, 2, 2, 0, -2, -126, 3], torch.float8_e4m3fn: [16, 20, -16, 0, 1, 2, 3]}
    put(kept, torch.tensor([[[*halves[dtype], top]]], dtype=torch.float32), slice(0, 1))
    assert kept.scales.tolist() == [[1.0]]
    assert kept.codes.float().tolist() == [[[*map(float, evens[dtype]), top]]]


@FORMATS
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_shows_in_its_row_and_no_other(put, dtype, number):
    rows, kept = torch.ones(3, 2, 8), empty(2, 3, 8, dtype)
    rows[1, 0, 5] = number
    put(kept, rows, slice(0, 3))
    is_nan = read(kept, slice(None), torch.float32).isnan()
    assert is_nan[0, 1].all()
    assert is_nan.sum() == 8


@FORMATS
def test_a_code_depends_on_its_own_numbers_alone(put, dtype):
    """Not on the order of writes, what stood there, what is written beside it, or how often."""
    torch.manual_seed(0)
    rows, slots = torch.randn(8, 2, 16) * torch.rand(8, 2, 1) * 100, torch.randperm(12)[:8]
    at_once, one_by_one = empty(2, 12, 16, dtype), empty(2, 12, 16, dtype)
    put(at_once, rows, slots)
    for row in torch.randperm(8).tolist():
        for wrong in (1e3, 1.0):
            put(one_by_one, rows[row : row + 1] * wrong, slots[row : row + 1])
    assert same(at_once, one_by_one)
    put(at_once, rows, slots)
    assert same(at_once, one_by_one)


@FORMATS
@pytest.mark.parametrize("prune", [0.0, 0.3])
def test_what_is_small_beside_its_row_becomes_zero_and_the_rest_keeps_its_code(put, dtype, prune):
    """By a loop over numbers: the largest stays, so the scale does, and so do codes that nothing is pruned from."""
    torch.manual_seed(0)
    rows, slots = torch.randn(7, 2, 24) * torch.logspace(-3, 3, 7).view(-1, 1, 1), torch.randperm(9)[:7]
    rows[2, 1], rows[3, 0, 5] = 0.0, torch.nan
    whole, pruned = empty(2, 9, 24, dtype), empty(2, 9, 24, dtype)
    put(whole, rows, slots)
    put(pruned, rows, slots, prune)
    expected = whole.codes.view(torch.int8).clone()
    for row, slot in enumerate(slots.tolist()):
        for head in range(2):
            numbers = rows[row, head]
            for place, number in enumerate(numbers.tolist()):
                if np.float32(abs(number)) < np.float32(prune) * np.float32(numbers.abs().max()):
                    expected[head, slot, place] = 0
    assert torch.equal(pruned.codes.view(torch.int8), expected)
    assert torch.equal(bits(pruned)[1], bits(whole)[1])
    assert (prune == 0.0) == same(whole, pruned)


def test_a_number_at_the_limit_stays(put):
    kept = empty(1, 1, 8, torch.int8)
    put(kept, torch.tensor([[[127.0, 32, -32, 31, -31, 1, 0, -127]]]) / 4, slice(0, 1), 32 / 127)
    assert kept.codes.tolist() == [[[127, 32, -32, 0, 0, 0, 0, -127]]]


@pytest.mark.parametrize("threads", [1, 2, 3])
@FORMATS
def test_attention_over_codes_is_that_over_their_numbers(compiled, dtype, threads):
    """Bit by bit, and with any number of threads: pieces of work are larger, but of the same sums."""
    before, own = torch.get_num_threads(), Kernel(compiled)
    torch.manual_seed(0)
    for rows, kv_heads, group, head_dim, visible in ((1, 1, 1, 8, 1), (37, 2, 3, 16, 139), (150, 1, 2, 128, 300)):
        q, kv = torch.randn(rows, kv_heads * group, head_dim), torch.randn(2, kv_heads, visible, head_dim)
        codes = [quantised(part, dtype) for part in kv]
        numbers = [read(part, slice(None), torch.float32) for part in codes]
        try:
            torch.set_num_threads(threads)
            over_codes = own.attend_all(q, *codes)
        finally:
            torch.set_num_threads(before)
        assert torch.equal(over_codes, own.attend_all(q, *numbers))


@FORMATS
def test_every_code_is_read_as_it_is_meant(compiled, dtype):
    """A row that sees one value is that value."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).view(32, 1, 8)
    is_code = codes.float().isfinite().flatten(1)
    out = Kernel(compiled).attend_all(
        torch.ones(1, 32, 8), Quantised(codes, torch.zeros(32, 1)), Quantised(codes, torch.full((32, 1), 0.25))
    )
    assert torch.equal(out[0][is_code], codes.float().flatten(1)[is_code] / 4)


def test_a_row_takes_its_codes_and_a_scale():
    assert row_bytes(128, torch.int8) == row_bytes(128, torch.float8_e4m3fn) == 132
    assert row_bytes(128, torch.bfloat16) / row_bytes(128, torch.int8) > 1.9
    assert row_bytes(32, torch.float32) == 128


def test_what_a_setting_stores():
    assert stored_dtype("auto", torch.bfloat16) is torch.bfloat16
    assert stored_dtype("int8", torch.bfloat16) is torch.int8
    assert stored_dtype("fp8", torch.float32) is torch.float8_e4m3fn
