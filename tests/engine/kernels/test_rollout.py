"""The rollout's column sums against the product they are columns of, and the attention that feeds it."""

import numpy as np
import pytest
import torch

from engine.kernels.attention import (
    Layout,
    PagedContext,
    Segment,
    Span,
    Watched,
    attend_rows,
    attend_spans,
    attend_watched,
)
from engine.kernels.kv.pool import KVPool
from engine.kernels.rollout import column_sums, column_sums_direct

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_rows", [1, 7, 40])
@pytest.mark.parametrize("num_layers", [1, 2, 12])
def test_a_chain_of_vectors_is_the_product_of_the_matrices(num_layers, num_rows):
    torch.manual_seed(num_layers)
    positions = torch.randperm(40)[:num_rows].sort().values
    layers = [(torch.randn(num_rows, 40) * 3).softmax(dim=-1) for _ in range(num_layers)]
    sums = column_sums(layers, positions, 40)
    torch.testing.assert_close(sums, column_sums_direct(layers, positions, 40), rtol=1e-5, atol=1e-6)
    assert sums.sum() == pytest.approx(40, rel=1e-5), "every row of the rollout sums to one"


def test_what_is_not_computed_keeps_what_it_has():
    sums = column_sums([torch.tensor([[0.0, 0.0, 1.0]])], torch.tensor([0]), 3)
    assert sums.tolist() == [0.5, 1.0, 1.5]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_watched_attention_is_attention_and_its_weights(kv_heads):
    torch.manual_seed(0)
    q, keys, values = torch.randn(9, 4, 8), torch.randn(kv_heads, 64, 8), torch.randn(kv_heads, 64, 8)
    slots = np.random.default_rng(0).permutation(64)[:33]
    segment = Segment(2, 7, torch.from_numpy(slots))
    layout = Layout(np.full(9, 33), [Span(2, 7, slots)], CPU)
    out, weights = attend_watched(q, keys, values, segment)
    torch.testing.assert_close(out, attend_rows(q, keys, values, layout)[2:7], atol=1e-5, rtol=1e-5)
    k = keys[:, segment.visible].repeat_interleave(4 // kv_heads, dim=0)
    expected = (torch.einsum("rhd,hsd->hrs", q[2:7], k) * 8**-0.5).softmax(dim=-1).mean(dim=0)
    torch.testing.assert_close(weights, expected)


def test_watched_and_other_segments_share_a_batch():
    torch.manual_seed(0)
    pool = KVPool(2, 64, 2, 8, torch.float32, torch.device("cpu"))
    pool.keys.normal_()
    pool.values.normal_()
    first, second, third = (
        Span(start, stop, np.arange(first, last))
        for start, stop, first, last in ((0, 5, 0, 20), (5, 9, 20, 40), (9, 16, 40, 64))
    )
    horizons = np.repeat([20, 20, 24], [5, 4, 7])
    q, k, v, slots = torch.randn(16, 4, 8), torch.randn(16, 2, 8), torch.randn(16, 2, 8), torch.arange(16)
    watched = Watched(Segment(5, 9, slice(20, 40)), [])
    mixed = PagedContext(pool, slots, Layout(horizons, [first, third], CPU), attend_spans, [watched])
    plain = PagedContext(pool, slots, Layout(horizons, [first, second, third], CPU), attend_spans)
    for layer in range(2):
        torch.testing.assert_close(mixed.attend(layer, q, k, v), plain.attend(layer, q, k, v), atol=1e-5, rtol=1e-5)
    assert [weights.shape for weights in watched.layers] == [(4, 20)] * 2
