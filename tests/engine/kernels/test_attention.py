"""The fast kernel against the definition, over contiguous and scattered pages, grouped heads and mixed horizons."""

import numpy as np
import pytest
import torch

from engine.kernels import native
from engine.kernels.attention import KVPool, PagedContext, Segment, attend_rows, attend_segments


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_segments_equal_rows(kv_heads, scattered, own, monkeypatch):
    """Torch's kernels, and our own where there is a compiler; scattered slots stand in no order."""
    if not own:
        monkeypatch.setattr(native, "kernel", lambda: None)
    torch.manual_seed(0)
    pool = KVPool(2, 64, kv_heads, 8, torch.float32, torch.device("cpu"))
    pool.keys.normal_()
    pool.values.normal_()
    order = torch.randperm(64) if scattered else torch.arange(64)
    segments = [
        Segment(0, 5, order[:20] if scattered else slice(0, 20)),
        Segment(5, 6, order[:33] if scattered else slice(0, 33)),
        Segment(6, 16, order[40:] if scattered else slice(40, 64)),
    ]
    q, k, v = torch.randn(16, 4, 8), torch.randn(16, kv_heads, 8), torch.randn(16, kv_heads, 8)
    slots = order[:16] if scattered else slice(0, 16)
    fast, slow = (
        PagedContext(pool, slots, segments, kernel).attend(1, q, k, v) for kernel in (attend_segments, attend_rows)
    )
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    assert torch.equal(pool.keys[1, :, slots], k.transpose(0, 1)), "this step's keys are in their slots"
    assert not torch.equal(pool.keys[0, :, slots], k.transpose(0, 1)), "and only in their layer"


def test_a_segment_of_all_rows_equals_rows():
    torch.manual_seed(0)
    pool = KVPool(1, 64, 2, 8, torch.float32, torch.device("cpu"))
    pool.keys.normal_()
    pool.values.normal_()
    q, segments = torch.randn(5, 4, 8), [Segment(0, 5, slice(3, 20))]
    slow = attend_rows(q, pool.keys[0], pool.values[0], segments)
    torch.testing.assert_close(attend_segments(q, pool.keys[0], pool.values[0], segments), slow, atol=1e-5, rtol=1e-5)


def test_rows_are_the_textbook_formula():
    pool = KVPool(1, 4, 1, 2, torch.float32, torch.device("cpu"))
    k, v = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    context = PagedContext(pool, torch.tensor([0, 1]), [Segment(0, 2, slice(0, 2))], attend_rows)
    out = context.attend(0, torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]]), k, v)
    weight = np.exp(2 / np.sqrt(2)) / (np.exp(2 / np.sqrt(2)) + 1)
    np.testing.assert_allclose(out[0, 0], [weight * 1 + (1 - weight) * 3, weight * 2 + (1 - weight) * 4], rtol=1e-6)
    np.testing.assert_allclose(out[1, 0], [2.0, 3.0], rtol=1e-6)
