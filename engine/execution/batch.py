"""Step plans of many requests -> the flat batch of one forward, on the host and then on the device.

`lay_out` is arithmetic over host arrays; a `FlatBatch` is then added to the step's upload. Knows rows, slots and
horizons; no policy, no model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.core.arrays import Ids, Mask
from engine.core.steps.plan import StepPlan
from engine.kernels.attention import TILE_ROWS, Judged, Layout, PagedRows, Segment, Span, Watched, neighbours
from engine.kernels.transfer import Upload, Uploaded


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """One forward as host arrays: rows of all plans one after the other."""

    ids: Ids
    """[rows] token ids."""
    positions: Ids
    """[rows] position of each row in its own sequence."""
    write_slots: Ids
    """[rows] where each row's key and value go."""
    horizons: Ids
    """[rows] how many slots of its sequence each row sees, the first ones; 0 is a row of padding."""
    logit_rows: Ids
    """[targets] the row whose logits score each target."""
    spans: tuple[Span, ...]
    """The rows of each plan that does not ask for the rollout."""
    watched: tuple[Span, ...]
    """The rows of each plan that does, in the plans' order. All rows of one see the same."""
    page_size: int
    """Positions whose slots are neighbours, from the first position on."""
    adapted: NDArray[np.bool_] | None = None
    """[rows] which go through the model's adapter; None if none does."""
    firsts: Ids | None = None
    """[rows] the first position that each row sees in layers with a window, if the model has any."""
    open_rows: "OpenIndices | None" = None
    """If positions show random tokens, of which the model remembers what it thought."""
    judged: tuple["JudgedIndices", ...] = ()
    """Of each plan whose eviction asks what keys are worth, in the plans' order."""

    @property
    def pages(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """`PagedRows` as host arrays: tiles, horizons and page table."""
        return tiles_of(self.spans, TILE_ROWS), self.horizons.astype(np.int32), _table(self.spans, self.page_size)

    def padded(self, rows: int, dump: int) -> "FlatBatch":
        """With rows of padding at the end, up to `rows`: they belong to no sequence, and write to the slot `dump`."""
        missing = rows - len(self.ids)

        def grown(array: Ids, value: int) -> Ids:
            return np.concatenate([array, np.full(missing, value, np.int64)])

        return FlatBatch(
            ids=grown(self.ids, 0),
            positions=grown(self.positions, 0),
            write_slots=grown(self.write_slots, dump),
            horizons=grown(self.horizons, 0),
            logit_rows=self.logit_rows,
            spans=self.spans,
            watched=self.watched,
            page_size=self.page_size,
        )

    def add_to(self, upload: Upload) -> Callable[[], "Batch"]:
        """Adds what the device reads. The function that it returns makes the batch, once the upload is sent."""
        ids, positions, logit_rows = (upload.add(array) for array in (self.ids, self.positions, self.logit_rows))
        is_one = len(self.spans) + len(self.watched) == 1
        slots = (is_one and neighbours(self.write_slots)) or upload.add(self.write_slots)
        paged = self._add_pages(upload) if upload.device.type == "cuda" else None
        watched = [(span, self._add_visible(span, upload)) for span in self.watched]
        adapted = None if self.adapted is None else upload.add(self.adapted)
        windowed = None if self.firsts is None else self._add_windowed(self.firsts, upload)
        open_rows = self.open_rows.add_to(upload) if self.open_rows else None
        judged = [(each, upload.add(each.slots)) for each in self.judged]

        def batch() -> Batch:
            pages = paged() if paged else None
            return Batch(
                ids=ids.tensor,
                positions=positions.tensor,
                slots=_arrived(slots),
                logit_rows=logit_rows.tensor,
                layout=Layout(self.horizons, self.spans, upload.device, pages),
                watched=tuple(
                    Watched(Segment(start, stop, _arrived(visible)), []) for (start, stop, _), visible in watched
                ),
                adapted=adapted.tensor.unsqueeze(-1) if adapted else None,
                windowed=windowed(pages) if windowed else None,
                open_rows=open_rows() if open_rows else None,
                judged=tuple(Judged(judges, slots.tensor, weight, []) for (judges, _, weight), slots in judged),
                flat=self,
            )

        return batch

    def _add_pages(self, upload: Upload) -> Callable[[], PagedRows]:
        tiles, horizons, table = (upload.add(array) for array in self.pages)
        return lambda: PagedRows(tiles.tensor, horizons.tensor, table.tensor, self.page_size)

    def _add_windowed(self, firsts: Ids, upload: Upload) -> Callable[[PagedRows | None], Layout]:
        """What rows see in layers with a window, once there are the pages for all other layers."""
        added = upload.add(firsts.astype(np.int32)) if upload.device.type == "cuda" else None

        def layout(pages: PagedRows | None) -> Layout:
            return Layout(self.horizons, self.spans, upload.device, pages, firsts, added.tensor if added else None)

        return layout

    def _add_visible(self, span: Span, upload: Upload) -> slice | Uploaded:
        horizon = int(self.horizons[span.start])
        assert (self.horizons[span.start : span.stop] == horizon).all(), (
            "attention weights of rows that see unlike keys"
        )
        slots = span.slots[:horizon]
        return neighbours(slots) or upload.add(slots)


@dataclass(frozen=True, slots=True)
class Batch:
    """A `FlatBatch` on a device: int64 tensors, where nothing else is said."""

    ids: Tensor
    positions: Tensor
    slots: slice | Tensor
    """[rows] where each row's key and value go; a slice where these slots are neighbours."""
    logit_rows: Tensor
    layout: Layout
    watched: tuple[Watched, ...]
    adapted: Tensor | None = None
    """bool [rows, 1], if any row goes through the model's adapter."""
    windowed: Layout | None = None
    """What rows see in layers with a window, if there are any."""
    open_rows: "OpenSlots | None" = None
    judged: tuple[Judged, ...] = ()
    flat: FlatBatch | None = None
    """What it is on the host, which other ranks are sent; None of what a graph reads."""


class JudgedIndices(NamedTuple):
    """As `Judged`, on the host."""

    judges: slice
    slots: Ids
    weight: float


@dataclass(frozen=True, slots=True)
class OpenIndices:
    """Which rows are of an open block, and where what the model thought of their positions is (`BlockVectors`)."""

    is_open: Mask
    """[rows]"""
    read: Ids
    """[rows] what a row carries beside its token."""
    write: Ids
    """[targets] where that of the next step goes."""

    def add_to(self, upload: Upload) -> "Callable[[], OpenSlots]":
        is_open, read, write = (upload.add(array) for array in (self.is_open.astype(np.int64), self.read, self.write))
        return lambda: OpenSlots(is_open.tensor.bool(), read.tensor, write.tensor)


class OpenSlots(NamedTuple):
    """`OpenIndices` on a device: bool and int64 tensors."""

    is_open: Tensor
    read: Tensor
    write: Tensor


def lay_out(plans: Sequence[StepPlan], page_size: int, dump: int) -> FlatBatch:
    """Flattens the plans in order. Raises AssertionError if a plan does not compute the rows that its targets need.

    Rows of positions whose keys and values are final write to the slot `dump`: others may be reading these.
    """
    counts = [len(plan.rows) for plan in plans]
    rows = np.concatenate([plan.rows for plan in plans])
    horizons = np.concatenate([plan.request.kept_before(plan.horizons) for plan in plans])
    stops = np.cumsum(counts).tolist()
    furthest = np.maximum.reduceat(horizons, [0, *stops[:-1]])
    # A kernel that walks page tables would read whatever lies behind them.
    assert (furthest <= [len(plan.request.slots) for plan in plans]).all(), "a row that sees positions without a slot"
    routed = [int(plan.rows[0]) % (plan.request.spec.routing_block or 1) for plan in plans]
    assert not any(routed), "rows that begin within a block whose rows are routed together"
    has_adapter = any(plan.request.spec.has_draft_adapter for plan in plans)
    adapted = np.concatenate([plan.adapted for plan in plans]) if has_adapter else None
    spans: tuple[list[Span], list[Span]] = [], []
    for plan, start, stop in zip(plans, [0, *stops], stops, strict=False):
        spans[plan.rollout].append(Span(start, stop, plan.request.slots))
    return FlatBatch(
        ids=np.concatenate([plan.request.ids[plan.rows] for plan in plans]),
        positions=rows,
        write_slots=np.concatenate([_write_slots(plan, dump) for plan in plans]),
        horizons=horizons,
        logit_rows=_logit_rows(plans, rows, np.repeat(np.arange(len(plans)), counts)),
        spans=tuple(spans[False]),
        watched=tuple(spans[True]),
        page_size=page_size,
        adapted=adapted if adapted is not None and adapted.any() else None,
        firsts=_firsts(plans),
        open_rows=_open_rows(plans, dump),
        judged=tuple(_judged(plans, [0, *stops])),
    )


def _judged(plans: Sequence[StepPlan], starts: Sequence[int]) -> Iterator[JudgedIndices]:
    """`starts` are the plans' first rows."""
    for plan, start in zip(plans, starts, strict=False):
        if (eviction := plan.eviction) and eviction.weight is not None:
            judges = eviction.judges
            judged = np.concatenate([eviction.candidates, plan.rows[judges]])
            rows = slice(start + judges.start, start + judges.stop)
            yield JudgedIndices(rows, plan.request.slots[plan.request.kept_before(judged)], eviction.weight)


def _firsts(plans: Sequence[StepPlan]) -> Ids | None:
    """[rows] of all plans, or None if their model has no window. Of an open block, all rows see as its first one."""
    if any(plan.request.spec.window is None for plan in plans):
        return None
    firsts = [np.minimum(plan.rows, plan.request.block.start) + 1 - (plan.request.spec.window or 0) for plan in plans]
    seen_first: Ids = np.maximum(np.concatenate(firsts), 0)
    return seen_first


def _open_rows(plans: Sequence[StepPlan], dump: int) -> OpenIndices | None:
    """Of all plans, or None if their model has a mask.

    Steps of a block read and write by turns, so that a step that is computed again reads what it has read before.
    """
    if any(plan.request.spec.mask_id is not None for plan in plans):
        return None
    is_open, read, write = [], [], []
    for plan in plans:
        request, step = plan.request, plan.request.block.step
        in_block = plan.rows >= request.block.start
        turns = vector_index(request.slots[request.kept_before(plan.rows)], (step - 1) % 2, dump)
        is_open.append(in_block)
        read.append(np.where(in_block & (step > 0), turns, dump))
        write.append(vector_index(request.slots[request.kept_before(plan.targets)], step % 2, dump))
    return OpenIndices(np.concatenate(is_open), np.concatenate(read), np.concatenate(write))


def vector_index(slots: Ids, turn: int, dump: int) -> Ids:
    """Where the vectors of these slots are in `BlockVectors`; those of the slot `dump` are zero in turn 0."""
    return slots + turn * (dump + 1)


def _write_slots(plan: StepPlan, dump: int) -> Ids:
    request, rows = plan.request, plan.rows
    slots = request.slots[request.kept_before(rows)]
    return np.where(rows < request.committed, dump, slots) if rows[0] < request.committed else slots


def _arrived(slots: slice | Uploaded) -> slice | Tensor:
    return slots if isinstance(slots, slice) else slots.tensor


def _table(spans: Sequence[Span], page_size: int) -> NDArray[np.int32]:
    """`PagedRows.table` of these spans."""
    pages = [span.slots[::page_size] // page_size for span in spans]
    table = np.zeros((len(pages), max(map(len, pages), default=0)), np.int32)
    for row, own in zip(table, pages, strict=True):
        row[: len(own)] = own
    return table


def tiles_of(spans: Sequence[Span], tile_rows: int) -> NDArray[np.int32]:
    """`PagedRows.tiles` of these spans."""
    starts, stops = np.array([span[:2] for span in spans], np.int64).reshape(-1, 2).T
    counts = -(-(stops - starts) // tile_rows)
    sequences = np.repeat(np.arange(len(spans)), counts)
    in_span = np.arange(len(sequences)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = starts[sequences] + in_span * tile_rows
    return np.stack([first, np.minimum(stops[sequences] - first, tile_rows), sequences], axis=-1).astype(np.int32)


def _logit_rows(plans: Sequence[StepPlan], rows: Ids, owners: Ids) -> Ids:
    """[targets] index into all plans' `rows` of the row with each target's logits; `owners` [rows] has rows' plans."""
    counts = [len(plan.targets) for plan in plans]
    sources = np.concatenate([plan.sources for plan in plans])
    stride = int(rows.max()) + 1  # so that the keys of all plans ascend
    keys, wanted = owners * stride + rows, np.repeat(np.arange(len(plans)), counts) * stride + sources
    indices: Ids = np.searchsorted(keys, wanted)
    assert (keys[np.minimum(indices, len(keys) - 1)] == wanted).all(), "a target without its row"
    return indices
