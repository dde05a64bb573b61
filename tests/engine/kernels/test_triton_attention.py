"""The kernel for CUDA, in Triton's interpreter, against the formula, row by row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.execution.batch import tiles_of
from engine.kernels.attention import TILE_ROWS, Span
from engine.kernels.kv.formats import LARGEST, Quantised, quantised, read
from engine.kernels.triton_attention import attend_paged

DEVICE = torch.device("cpu")
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3}
KINDS = ["all", "causal", "block-causal", "first", "any", "padded"]


def horizons(kind, positions, length, rng):
    """Of rows at these positions of a sequence of `length`."""
    if kind == "causal":
        return positions + 1
    if kind == "block-causal":
        return np.minimum((positions // 4 + 1) * 4, length)
    if kind == "any":
        return rng.integers(1, length + 1, len(positions))
    if kind == "padded":
        return np.where(rng.random(len(positions)) < 0.5, 0, length)
    return np.full(len(positions), {"all": length, "first": 1}[kind])


class Batch:
    """Sequences of random lengths on scattered pages; slots that none of them has written hold NaN."""

    def __init__(self, rng, dtype, page_size, kv_heads, group, head_dim, kinds, stored=None):
        """`stored`: the dtype of the codes that keys and values are, if they are."""
        lengths = [int(rng.choice([1, page_size, 40, 70, 131])) + int(rng.integers(3)) for _ in kinds]
        counts = [min(int(rng.choice([1, 4, 37, TILE_ROWS, TILE_ROWS + 1])), length) for length in lengths]
        gaps = rng.integers(0, 3, len(kinds))  # rows of no sequence before each
        self.starts = np.cumsum([0, *counts[:-1]]) + np.cumsum(gaps)
        self.stops = self.starts + counts
        rows = int(self.stops[-1]) + 2
        pages_of = [-(-length // page_size) for length in lengths]
        pages = sum(pages_of) + 3
        self.page_size, self.table = page_size, np.full((len(kinds), max(pages_of) + 1), pages - 1)
        self.horizons = np.zeros(rows, dtype=np.int64)
        slots = pages * page_size
        kv = torch.full((2, kv_heads, slots + 5, head_dim), torch.nan, dtype=dtype)  # heads are not neighbours
        free = rng.permutation(pages)
        for number, (kind, length, own) in enumerate(zip(kinds, lengths, pages_of, strict=True)):
            self.table[number, :own], free = free[:own], free[own:]
            written = self.slots(number, length)
            kv[:, :, written] = torch.randn(2, kv_heads, length, head_dim).to(dtype)
            positions = np.arange(length - counts[number], length)
            rows_of = slice(self.starts[number], self.stops[number])
            self.horizons[rows_of] = horizons(kind, positions, length, rng)
        self.keys, self.values = self.kept = [part[:, :slots] for part in kv]
        if stored:
            codes = [quantised(part, stored) for part in kv]
            self.kept = [Quantised(own.codes[:, :slots], own.scales[:, :slots]) for own in codes]
            self.keys, self.values = (read(own, slice(None), torch.float32) for own in self.kept)
        heads = kv_heads * group
        self.q = (2 * torch.randn(rows, heads + 2, head_dim).to(dtype))[:, :heads]  # beside them k and v, as if fused

    def slots(self, number, length):
        positions = np.arange(length)
        return self.table[number, positions // self.page_size] * self.page_size + positions % self.page_size

    def spans(self):
        return [Span(start, stop, None) for start, stop in zip(self.starts, self.stops, strict=True)]

    def attend(self):
        """By the kernel, with tiles without rows between and behind the others."""
        cut, padding = tiles_of(self.spans(), TILE_ROWS), [[0, 0, 0]]
        padded = np.concatenate([cut[:1], padding, cut[1:], padding])
        arrays = (padded, self.horizons, self.table)
        tensors = [torch.from_numpy(array.astype(np.int32)).to(DEVICE) for array in arrays]
        return attend_paged(self.q.to(DEVICE), *map(on_device, self.kept), *tensors, self.page_size).cpu()

    def expect(self):
        """Rows of sequences, in order, by the formula; the indices of these rows."""
        expected, rows = [], []
        group = self.q.shape[1] // len(self.keys)
        for number, (start, stop) in enumerate(zip(self.starts, self.stops, strict=True)):
            for row in range(start, stop):
                seen = self.slots(number, int(self.horizons[row]))
                k, v = (part[:, seen].float().repeat_interleave(group, dim=0) for part in (self.keys, self.values))
                scores = torch.einsum("hd,hsd->hs", self.q[row].float(), k) * self.q.shape[-1] ** -0.5
                expected.append(torch.einsum("hs,hsd->hd", scores.softmax(dim=-1), v).to(self.q.dtype))
                rows.append(row)
        return torch.stack(expected), rows


def on_device(stored):
    return stored.to(DEVICE) if isinstance(stored, torch.Tensor) else Quantised(*(part.to(DEVICE) for part in stored))


def check(seed, *shape, stored=None):
    torch.manual_seed(seed)
    batch = Batch(np.random.default_rng(seed), *shape, stored)
    expected, rows = batch.expect()
    tolerance = TOLERANCE[batch.q.dtype]
    torch.testing.assert_close(batch.attend()[rows], expected, atol=tolerance, rtol=tolerance)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    page_size=st.sampled_from([1, 5, 16, 32]),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 2, 4, 7]),
    head_dim=st.sampled_from([32, 64, 80, 128]),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
)
def test_each_row_sees_what_is_below_its_horizon(seed, dtype, page_size, kv_heads, group, head_dim, kinds):
    check(seed, dtype, page_size, kv_heads, group, head_dim, kinds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [(8, torch.float32), (64, torch.float16), (96, torch.float32), (128, torch.float16), (256, torch.float32)],
)
def test_head_sizes(head_dim, dtype):
    """The largest ones are read a few keys at once; 8 is less than Triton multiplies."""
    check(head_dim, dtype, 16, 2, 2, head_dim, ["block-causal", "all"])


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.float32, 80), (torch.float16, 64)])
@pytest.mark.parametrize("stored", LARGEST)
def test_codes(stored, dtype, head_dim):
    """Rows see what their codes stand for. Codes of slots that nobody has written stand for NaN."""
    check(head_dim, dtype, 5, 2, 2, head_dim, ["block-causal", "all", "any", "padded"], stored=stored)


@pytest.mark.slow
@pytest.mark.parametrize("group", [7, 16])
def test_groups(group):
    check(group, torch.float32, 5, 1, group, 32, ["causal", "all", "padded"])


def test_large_scores_stay_finite():
    """exp of them would not be: the running maximum is subtracted, however late it comes."""
    batch = Batch(np.random.default_rng(0), torch.float32, 16, 1, 1, 32, ["all"])
    batch.keys *= 300
    expected, rows = batch.expect()
    assert expected.isfinite().all()
    torch.testing.assert_close(batch.attend()[rows], expected, atol=1e-4, rtol=1e-4)
