"""Step plans of many requests -> the flat batch of one forward, on the host and then on the device.

`lay_out` is arithmetic over host arrays; `upload` copies its result. Knows rows, slots and horizons; no policy, no
model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.core.plan import StepPlan
from engine.core.request import Ids
from engine.kernels.attention import Layout, Segment, Span, Watched, places
from engine.kernels.transfer import to_device


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
    """[rows] how many positions of its sequence each row sees; 0 is a row of padding."""
    logit_rows: Ids
    """[targets] the row whose logits score each target."""
    spans: tuple[Span, ...]
    """The rows of each plan that does not ask for the rollout."""
    watched: tuple[Span, ...]
    """The rows of each plan that does, in the plans' order. All rows of one see the same."""

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
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """A `FlatBatch` on a device: int64 tensors."""

    ids: Tensor
    positions: Tensor
    slots: slice | Tensor
    """[rows] where each row's key and value go; a slice where these slots are neighbours."""
    logit_rows: Tensor
    layout: Layout
    watched: tuple[Watched, ...]


def build(plans: Sequence[StepPlan], device: torch.device) -> Batch:
    """`lay_out`, then `upload`."""
    return upload(lay_out(plans), device)


def lay_out(plans: Sequence[StepPlan]) -> FlatBatch:
    """Flattens the plans in order. Raises AssertionError if a plan does not compute the rows that its targets need."""
    counts = [len(plan.rows) for plan in plans]
    rows = np.concatenate([plan.rows for plan in plans])
    stops = np.cumsum(counts).tolist()
    spans: tuple[list[Span], list[Span]] = [], []
    for plan, start, stop in zip(plans, [0, *stops], stops, strict=False):
        spans[plan.rollout].append(Span(start, stop, plan.request.slots))
    horizons = np.concatenate([plan.horizons for plan in plans])
    furthest = np.maximum.reduceat(horizons, [0, *stops[:-1]])
    # A kernel that walks page tables would read whatever lies behind them.
    assert (furthest <= [len(plan.request.slots) for plan in plans]).all(), "a row that sees positions without a slot"
    return FlatBatch(
        ids=np.concatenate([plan.request.ids[plan.rows] for plan in plans]),
        positions=rows,
        write_slots=np.concatenate([plan.request.slots[plan.rows] for plan in plans]),
        horizons=horizons,
        logit_rows=_logit_rows(plans, rows, np.repeat(np.arange(len(plans)), counts)),
        spans=tuple(spans[False]),
        watched=tuple(spans[True]),
    )


def upload(flat: FlatBatch, device: torch.device) -> Batch:
    """Copies what a forward reads to the device."""
    is_one = len(flat.spans) + len(flat.watched) == 1
    return Batch(
        ids=to_device(flat.ids, device),
        positions=to_device(flat.positions, device),
        slots=places(flat.write_slots, device) if is_one else to_device(flat.write_slots, device),
        logit_rows=to_device(flat.logit_rows, device),
        layout=Layout(flat.horizons, flat.spans, device),
        watched=tuple(_watched(span, flat.horizons, device) for span in flat.watched),
    )


def _watched(span: Span, horizons: Ids, device: torch.device) -> Watched:
    horizon = int(horizons[span.start])
    assert (horizons[span.start : span.stop] == horizon).all(), "attention weights of rows that do not see the same"
    return Watched(Segment(span.start, span.stop, places(span.slots[:horizon], device)), [])


def _logit_rows(plans: Sequence[StepPlan], rows: Ids, owners: Ids) -> Ids:
    """[targets] index into all plans' `rows` of the row with each target's logits; `owners` [rows] has rows' plans."""
    counts = [len(plan.targets) for plan in plans]
    shifts = np.repeat([plan.request.spec.shift for plan in plans], counts)
    sources = np.maximum(np.concatenate([plan.targets for plan in plans]) - shifts, 0)
    stride = int(rows.max()) + 1  # so that the keys of all plans ascend
    keys, wanted = owners * stride + rows, np.repeat(np.arange(len(plans)), counts) * stride + sources
    indices: Ids = np.searchsorted(keys, wanted)
    assert (keys[np.minimum(indices, len(keys) - 1)] == wanted).all(), "a target without its row"
    return indices
