"""Attention over a paged KV pool: writes this step's keys and values in place, then reads below each row's horizon.

The contract of every kernel: row i attends to the first `horizons[i]` slots of its own sequence; those on a CPU, and
SDPA, may leave out the first ones (`Layout.firsts`). `attend_rows` is the
definition, row by row; `attend_spans` is what runs where there is no kernel for page tables on the device. Where
attention weights are asked for, `attend_watched` replaces the kernel. Knows layers as numbers and sequences as slots,
but not which rows come, or why.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.kernels import native
from engine.kernels.kv.formats import Stored, as_stored, read
from engine.kernels.kv.pool import KVPool, LayeredKVPool
from engine.kernels.kv.retention import retention
from engine.kernels.products import attention, watched_attention, write
from engine.kernels.transfer import to_device

Ids = NDArray[np.int64]

MOST_SEGMENTS, ROWS_OF_PIECE = 16, 256
"""Segments of a span, each attended to by a call; a span with more is cut into pieces of so many rows, with a mask.
Chosen, not measured."""

TILE_ROWS = 64
"""Most rows of one tile of `PagedRows`, and rows of a tensor core's operand. Chosen, not measured."""


class Span(NamedTuple):
    """Rows [start, stop) of a batch, all of one sequence."""

    start: int
    stop: int
    slots: Ids
    """The slots of the sequence's positions, in order, at least as many as the largest horizon of these rows."""


class Segment(NamedTuple):
    """Rows [start, stop) of a batch: neighbours in one sequence that see the same keys."""

    start: int
    stop: int
    visible: slice | Tensor
    """Slots of the positions that they see: a slice where these are neighbours, else int64 indices."""
    seen: Tensor | None = None
    """bool [rows, visible] which of these each row sees; None is all."""


class Watched(NamedTuple):
    """A segment whose attention weights are asked for."""

    segment: Segment
    layers: list[Tensor]
    """Filled by the forward, for each layer: the weights' mean over heads, float32 [rows, visible]."""


class Judged(NamedTuple):
    """Cached keys whose worth is asked for (`engine.kernels.kv.retention`)."""

    judges: slice
    """Of the batch's rows, all of one sequence: those whose queries judge."""
    slots: Tensor
    """int64 [candidates + judges] where keys are: those that are judged, then the judges' own."""
    weight: float
    """As `retention` takes it."""
    layers: list[Tensor]
    """Filled by the forward, for each layer: the mean over heads, float32 [candidates]."""


class Heads(NamedTuple):
    """A model's heads of attention."""

    kv_heads: int
    group: int
    """Query heads that share one of keys and values."""
    head_dim: int


class PagedRows(NamedTuple):
    """What a kernel that walks page tables reads, int32 tensors on the device."""

    tiles: Tensor
    """[tiles, 3] first row, number of rows, and sequence: a span cut into pieces of at most `TILE_ROWS` rows."""
    horizons: Tensor
    """[rows] as in `Layout`."""
    table: Tensor
    """[sequences, pages] the page of each page_size positions; what lies behind a row's horizon is not read."""
    page_size: int


@dataclass(frozen=True)
class Layout:
    """What each row of a batch sees. All layers of a step share one layout."""

    horizons: Ids
    """[rows] on the host: row i sees the first `horizons[i]` slots of its span, at least one. 0 is a row of padding."""
    spans: Sequence[Span]
    """The rows that the kernel computes, ascending. All others are undefined in its result."""
    device: torch.device
    paged: PagedRows | None = None
    """The same for kernels that walk page tables; None on a CPU, whose kernels read the spans."""
    firsts: Ids | None = None
    """[rows] on the host: how many slots of its span, the first ones, each row does not see. None is none of any;
    kernels that walk page tables take nothing else."""
    device_firsts: Tensor | None = None
    """int32 [rows] the same on the device, where `paged` is."""

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The spans, cut where the horizon changes, or in pieces whose rows see different slots."""
        return tuple(segment for number, span in enumerate(self.spans) for segment in self._cut(number, span))

    @cached_property
    def native_spans(self) -> Ids:
        """[spans, 4] as `native.Kernel.attend` takes them, cut where `firsts` change: valid while `spans` is."""
        return np.array(
            [
                native.SpanAddress(span.start + start, span.start + stop, 0, _address(span.slots[first:]))
                for span in self.spans
                for start, stop, first in self._same_first(span)
            ],
            np.int64,
        ).reshape(-1, 4)

    @cached_property
    def native_horizons(self) -> Ids:
        """[rows] how many slots of its native span each row sees."""
        return self.horizons if self.firsts is None else self.horizons - self.firsts

    def _same_first(self, span: Span) -> Iterator[tuple[int, int, int]]:
        """Runs of rows, counted within the span, that see from the same slot on, and the number of that slot."""
        if self.firsts is None:
            yield 0, span.stop - span.start, 0
            return
        firsts = self.firsts[span.start : span.stop]
        ends = [*(1 + np.flatnonzero(np.diff(firsts))).tolist(), len(firsts)]
        for start, stop in zip([0, *ends], ends, strict=False):
            yield start, stop, int(firsts[start])

    def _cut(self, number: int, span: Span) -> Iterator[Segment]:
        horizons = self.horizons[span.start : span.stop]
        firsts = self._firsts[span.start : span.stop]
        changes = (np.diff(horizons) != 0) | (np.diff(firsts) != 0)
        ends = [*(1 + np.flatnonzero(changes)).tolist(), len(horizons)]
        if is_uneven := len(ends) > MOST_SEGMENTS:
            ends = [*range(ROWS_OF_PIECE, len(horizons), ROWS_OF_PIECE), len(horizons)]
        for start, stop in zip([0, *ends], ends, strict=False):
            first, end = int(firsts[start:stop].min()), int(horizons[start:stop].max())
            visible = self._visible(number, span.slots[:end])
            visible = slice(visible.start + first, visible.stop) if isinstance(visible, slice) else visible[first:]
            seen = None
            if is_uneven:
                seen = self._seen(slice(span.start + start, span.start + stop), first, end)
            yield Segment(span.start + start, span.start + stop, visible, seen)

    def _seen(self, rows: slice, first: int, end: int) -> Tensor:
        """bool [rows, end - first] which of the slots [first, end) each of them sees."""
        if self.paged is None:
            horizons, firsts = (to_device(each[rows, None], self.device) for each in (self.horizons, self._firsts))
        else:  # already on the device
            horizons = self.paged.horizons[rows, None]
            firsts = torch.zeros_like(horizons) if self.device_firsts is None else self.device_firsts[rows, None]
        slot = torch.arange(first, end, device=self.device)
        return (slot >= firsts) & (slot < horizons)

    @property
    def _firsts(self) -> Ids:
        return np.zeros_like(self.horizons) if self.firsts is None else self.firsts

    def _visible(self, number: int, slots: Ids) -> slice | Tensor:
        if (visible := neighbours(slots)) or self.paged is None:
            return visible or to_device(slots, self.device)
        table, page_size = self.paged.table, self.paged.page_size  # already on the device
        pages = table[number, : -(-len(slots) // page_size), None].long()
        in_page = torch.arange(page_size, device=self.device)
        return (pages * page_size + in_page).flatten()[: len(slots)]


Kernel = Callable[[Tensor, Stored, Stored, Layout], Tensor]
"""q [rows, heads, head_dim], keys and values [kv_heads, slots, head_dim] in one format, layout -> as q."""


@dataclass(frozen=True, slots=True)
class PagedContext:
    """One step's `engine.models.layers.AttentionContext` over the pool."""

    pool: KVPool | LayeredKVPool
    slots: slice | Tensor
    """[rows] where each row's key and value go: a slice where they are neighbours, else int64 indices."""
    layout: Layout
    """With the watched segments, its spans cover all rows but padding."""
    kernel: Kernel
    watched: Sequence[Watched] = ()
    windowed: Layout | None = None
    """What rows see in layers with a window, if there are any."""
    windowed_layers: Container[int] = ()
    judged: Sequence[Judged] = ()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.pool.layer(layer)
        write(keys, k, self.slots, self.pool.prune)
        write(values, v, self.slots, self.pool.prune)
        layout = self.windowed if self.windowed and layer in self.windowed_layers else self.layout
        out = self.kernel(q, keys, values, layout)
        for segment, layers in self.watched:
            out[segment.start : segment.stop], weights = attend_watched(q, keys, values, segment)
            layers.append(weights)
        for judges, slots, weight, layers in self.judged:
            own = q[judges]
            worth = retention(own, read(keys, slots, torch.float32), len(slots) - len(own), weight)
            layers.append(worth.mean(dim=0))
        return out


def attend_rows(q: Tensor, keys: Stored, values: Stored, layout: Layout) -> Tensor:
    """The slow twin: softmax(q k / sqrt(head_dim)) v, one row at a time."""
    out = torch.empty_like(q)
    for span in layout.spans:
        for row in range(span.start, span.stop):
            first = 0 if layout.firsts is None else layout.firsts[row]
            visible = torch.from_numpy(span.slots[first : layout.horizons[row]]).to(q.device)
            k, v = (read(stored, visible, torch.float32).float() for stored in (keys, values))
            k, v = (each.repeat_interleave(q.shape[1] // len(each), dim=0) for each in (k, v))  # [heads, visible, dim]
            weights = (torch.einsum("hd,hsd->hs", q[row].float(), k) * q.shape[-1] ** -0.5).softmax(dim=-1)
            out[row] = torch.einsum("hs,hsd->hd", weights, v).to(q.dtype)
    return out


def attend_spans(q: Tensor, keys: Stored, values: Stored, layout: Layout) -> Tensor:
    """One call for all rows where this project's CPU kernel is available, which reads every page in place.

    Otherwise one dense attention per segment, which reads keys and values in place where their slots are neighbours and
    they are no codes; a segment's codes are read into a copy first.
    """
    if native.takes(q, keys, values) and (own := native.kernel()):
        return own.attend(q, keys, values, layout.native_spans, layout.native_horizons)
    segments = layout.segments
    if len(segments) == 1 and segments[0].stop - segments[0].start == len(q) and segments[0].seen is None:
        return attention(q, *_visible(q, keys, values, segments[0]))
    out = torch.empty_like(q)
    for segment in segments:
        rows = slice(segment.start, segment.stop)
        out[rows] = attention(q[rows], *_visible(q, keys, values, segment), segment.seen)
    return out


def attend_watched(q: Tensor, keys: Stored, values: Stored, segment: Segment) -> tuple[Tensor, Tensor]:
    """What `attend_spans` computes for one segment, with weights: [rows, heads, head_dim] and [rows, visible].

    The weights are the mean over heads, in float32.
    """
    return watched_attention(q[segment.start : segment.stop], *_visible(q, keys, values, segment))


def _visible(q: Tensor, keys: Stored, values: Stored, segment: Segment) -> tuple[Tensor, Tensor]:
    """The keys and the values that a segment sees, as numbers [kv_heads, visible, head_dim]."""
    return read(keys, segment.visible, q.dtype), read(values, segment.visible, q.dtype)


@torch.no_grad()
def agrees(
    kernel: Kernel, heads: Heads, page_size: int, dtype: torch.dtype, stored: torch.dtype, device: torch.device
) -> bool:
    """Whether a kernel for page tables has the results of `attend_rows` on this device, but for rounding.

    Tried with the model's own heads and pages, and keys and values `stored` as this: another kernel is compiled for
    each.
    """
    kv_heads, group, head_dim = heads
    visible = 48
    pages = np.arange(2 * -(-visible // page_size))[::-1]
    pages = np.stack([pages[::2], pages[1::2]])  # descending, every other page
    slots = (pages[:, :, None] * page_size + np.arange(page_size)).reshape(2, -1)
    horizons = np.concatenate([np.arange(1, 41), np.full(30, visible), [0, 0]])
    tiles = np.array([[0, 40, 0], [40, 30, 1], [0, 0, 0]])
    tensors = [to_device(array.astype(np.int32), device) for array in (tiles, horizons, pages)]
    paged = PagedRows(tensors[0], tensors[1], tensors[2], page_size)
    layout = Layout(horizons, [Span(0, 40, slots[0]), Span(40, 70, slots[1])], device, paged)
    count = max(len(horizons) * kv_heads * group, kv_heads * slots.size)
    waves = (torch.arange(count * head_dim, device=device).mul(step).sin().to(dtype) for step in (0.7, 1.1, 1.3))
    q, keys, values = (wave.view(-1, head_dim) for wave in waves)
    q = q[: len(horizons) * kv_heads * group].view(-1, kv_heads * group, head_dim)
    kv = [each[: kv_heads * slots.size].view(kv_heads, -1, head_dim) for each in (keys, values)]
    kept_keys, kept_values = (as_stored(each, stored) for each in kv)
    ours, theirs = (attend(q, kept_keys, kept_values, layout)[:70] for attend in (kernel, attend_rows))
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    return bool(torch.allclose(ours.float(), theirs.float(), atol=tolerance, rtol=tolerance))


def neighbours(slots: Ids) -> slice | None:
    """The slice of these slots, in the order of one sequence's positions, if they are neighbours."""
    begin, last = int(slots[0]), int(slots[-1])
    # The ends alone rule out most scattered slots, but not all: pages may be in any order.
    if last - begin == len(slots) - 1 and bool((np.diff(slots) == 1).all()):
        return slice(begin, last + 1)
    return None


def _address(slots: Ids) -> int:
    assert slots.flags.c_contiguous
    return int(slots.__array_interface__["data"][0])
