"""The fast kernels against the definition: rows that see as they will over page tables in any order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels import native
from engine.kernels.attention import Layout, PagedContext, Span, attend_rows, attend_spans
from engine.kernels.kv.formats import read, write
from engine.kernels.kv.pool import KVPool, LayeredKVPool

CPU = torch.device("cpu")


@pytest.fixture(params=["ours", "torch's"])
def kernel(request, monkeypatch):
    """`attend_spans` with our own kernel, and as it is without a C++ compiler."""
    if request.param == "ours":
        assert native.kernel()
    else:
        monkeypatch.setattr(native, "kernel", lambda: None)
    return attend_spans


def pool_of(slots, kv_heads, head_dim=8, dtype=torch.float32):
    """Two layers of random numbers; what no row may read is not a number."""
    pool = KVPool(2, slots, kv_heads, head_dim, dtype, CPU)
    for part in (*pool.layer(0), *pool.layer(1)):
        rows = torch.randn(slots + 1, kv_heads, head_dim)
        rows[pool.dump] = torch.nan
        write(part, rows, slice(0, slots + 1))
    return pool


@st.composite
def layouts(draw):
    """(page size, pages, layout, rows): sequences with page tables in any order, and rows of padding behind them."""
    page_size = draw(st.sampled_from([1, 3, 16]))
    pages = draw(st.integers(4, 20))
    order = draw(st.permutations(range(pages)))
    spans, horizons = [], []
    while order and len(spans) < 4:
        table, order = np.array(order[: (count := draw(st.integers(1, 6)))]), order[count:]
        slots = (table[:, None] * page_size + np.arange(page_size)).reshape(-1)
        count = draw(st.integers(1, 40))
        match draw(st.sampled_from(["all", "blocks", "each"])):
            case "all":
                own = np.full(count, draw(st.integers(1, len(slots))))
            case "blocks":
                own = np.minimum((np.arange(count) // 4 + 1) * 4, len(slots))
            case "each":
                own = np.array(draw(st.lists(st.integers(1, len(slots)), min_size=count, max_size=count)))
        spans.append(Span(len(horizons), len(horizons) + count, slots))
        horizons += own.tolist()
    rows = len(horizons) + draw(st.integers(0, 9))
    horizons += [0] * (rows - len(horizons))
    window = draw(st.sampled_from([None, 1, 5, 30]))
    firsts = None if window is None else np.maximum(np.array(horizons) - window, 0)
    return page_size * pages, Layout(np.array(horizons), spans, CPU, firsts=firsts), rows


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("stored", [torch.float32, torch.int8, torch.float8_e4m3fn])
def test_every_layout_gives_what_row_by_row_gives(stored, own):
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(layouts(), st.sampled_from([8, 16, 64]), st.sampled_from([(1, 4), (2, 2), (4, 1), (2, 7)]))
    @torch.inference_mode()
    def check(drawn, head_dim, heads):
        (slots, layout, rows), (kv_heads, group) = drawn, heads
        torch.manual_seed(rows)
        pool = pool_of(slots, kv_heads, head_dim, stored)
        q = torch.randn(rows, kv_heads * (group + 2), head_dim)[:, : kv_heads * group]
        fast, slow = (one(q, *pool.layer(0), layout) for one in (attend_spans, attend_rows))
        for start, stop, _ in layout.spans:
            torch.testing.assert_close(fast[start:stop], slow[start:stop], atol=1e-5, rtol=1e-5)

    with pytest.MonkeyPatch.context() as patch:
        if not own:
            patch.setattr(native, "kernel", lambda: None)
        check()


@torch.inference_mode()
def test_our_kernel_takes_all_sequences_and_horizons_in_one_call(monkeypatch):
    calls, attend = [], native.Kernel.attend
    monkeypatch.setattr(native.Kernel, "attend", lambda *arguments: calls.append(1) or attend(*arguments))
    pool = pool_of(512, 2, 16)
    spans = [Span(0, 300, np.random.default_rng(0).permutation(400)), Span(300, 340, np.arange(400, 512))]
    layout = Layout(np.concatenate([np.arange(300) // 4 * 4 + 4, np.full(40, 100)]), spans, CPU)
    attend_spans(torch.randn(340, 4, 16), pool.keys[0], pool.values[0], layout)
    assert calls == [1]


@torch.inference_mode()
def test_what_a_row_does_not_see_may_be_anything(kernel):
    """Also where another row of its tile sees it: only our own kernel has tiles with several horizons."""
    pool = pool_of(128, 2)
    slots = np.random.default_rng(0).permutation(128)
    layout = Layout(np.arange(1, 41), [Span(0, 40, slots)], CPU)
    q = torch.randn(40, 4, 8)
    expected = kernel(q, pool.keys[0], pool.values[0], layout)
    late = torch.from_numpy(slots[30:])
    pool.keys[0][:, late], pool.values[0][:, late] = 1e6, 1e6
    assert torch.equal(kernel(q, pool.keys[0], pool.values[0], layout)[:30], expected[:30])


@pytest.mark.parametrize("scattered", [False, True])
@torch.inference_mode()
def test_this_steps_keys_are_read_and_stay_in_their_slots_and_layer(kernel, scattered):
    pool = pool_of(64, 2)
    order = np.random.default_rng(0).permutation(64) if scattered else np.arange(64)
    layout = Layout(np.repeat([20, 24], [5, 11]), [Span(0, 5, order[:20]), Span(5, 16, order[40:])], CPU)
    q, k, v = torch.randn(16, 4, 8), torch.randn(16, 2, 8), torch.randn(16, 2, 8)
    slots = torch.from_numpy(order[:16]) if scattered else slice(0, 16)
    fast, slow = (PagedContext(pool, slots, layout, one).attend(1, q, k, v) for one in (kernel, attend_rows))
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    assert torch.equal(pool.keys[1, :, slots], k.transpose(0, 1))
    assert not torch.equal(pool.keys[0, :, slots], k.transpose(0, 1))


def test_rows_are_the_textbook_formula():
    pool = KVPool(1, 4, 1, 2, torch.float32, CPU)
    k, v = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    layout = Layout(np.array([2, 2]), [Span(0, 2, np.array([0, 1]))], CPU)
    context = PagedContext(pool, torch.tensor([0, 1]), layout, attend_rows)
    out = context.attend(0, torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]]), k, v)
    weight = np.exp(2 / np.sqrt(2)) / (np.exp(2 / np.sqrt(2)) + 1)
    np.testing.assert_allclose(out[0, 0], [weight * 1 + (1 - weight) * 3, weight * 2 + (1 - weight) * 4], rtol=1e-6)
    np.testing.assert_allclose(out[1, 0], [2.0, 3.0], rtol=1e-6)


def test_a_pool_of_unlike_layers():
    """Each has heads of its own; slots are cleared in all of them, and only values."""
    pool = LayeredKVPool([(2, 8), (1, 16)], 4, torch.float32, CPU)
    keys, values = zip(pool.layer(0), pool.layer(1), strict=True)
    assert [tuple(each.shape) for each in keys] == [(2, 5, 8), (1, 5, 16)]
    assert pool.num_bytes == 2 * 4 * (2 * 8 + 16) * 4
    for tensor in (*keys, *values):
        tensor.fill_(torch.nan)
    pool.clear(torch.tensor([1, 3]))
    for each in values:
        assert each[:, [1, 3]].eq(0).all()
        assert each[:, [0, 2]].isnan().all()
    assert all(each.isnan().all() for each in keys)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_pool_of_unlike_layers_may_store_codes(dtype):
    pool = LayeredKVPool([(2, 8), (1, 16)], 4, dtype, CPU)
    assert pool.num_bytes == 2 * 4 * (2 * (8 + 4) + (16 + 4))
    for layer, (heads, head_dim) in enumerate([(2, 8), (1, 16)]):
        for part in pool.layer(layer):
            assert (tuple(part.codes.shape), part.codes.dtype) == ((heads, 5, head_dim), dtype)
            assert (tuple(part.scales.shape), part.scales.dtype) == ((heads, 5), torch.float32)
            write(part, torch.full((4, heads, head_dim), torch.nan), slice(0, 4))
    pool.clear(torch.tensor([1, 3]))
    for layer in (0, 1):
        keys, values = (read(part, slice(0, 4), torch.float32) for part in pool.layer(layer))
        assert values[:, [1, 3]].eq(0).all()
        assert values[:, [0, 2]].isnan().all()
        assert keys.isnan().all()


@torch.inference_mode()
def test_layers_with_a_window_have_a_layout_of_their_own():
    slots = np.arange(6)
    horizons = np.arange(1, 7)
    layout = Layout(horizons, [Span(0, 6, slots)], CPU)
    windowed = Layout(horizons, [Span(0, 6, slots)], CPU, firsts=np.maximum(horizons - 2, 0))
    pool = LayeredKVPool([(1, 8), (1, 8)], 6, torch.float32, CPU)
    context = PagedContext(pool, slice(0, 6), layout, attend_rows, windowed=windowed, windowed_layers={1})
    q, k, v = (torch.randn(6, 1, 8) for _ in range(3))
    whole, near = (context.attend(layer, q, k, v) for layer in (0, 1))
    torch.testing.assert_close(whole[:2], near[:2])
    assert (whole[2:] - near[2:]).abs().amax(dim=(1, 2)).min() > 1e-3
