"""Step plans of many requests -> the flat tensors of one forward.

Knows rows, slots and horizons; no policy, no model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.core.plan import StepPlan
from engine.core.request import Ids
from engine.kernels.attention import Segment, Watched
from engine.kernels.transfer import to_device


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward: int64 tensors on one device, rows of all plans one after the other."""

    ids: Tensor
    """[rows] token ids."""
    positions: Tensor
    """[rows] position of each row in its own sequence."""
    slots: slice | Tensor
    """[rows] KV slot of each row; a slice where they are neighbours."""
    logit_rows: Tensor
    """[targets] the row whose logits score each target."""
    segments: tuple[Segment, ...]
    watched: tuple[Watched, ...]
    """Segments of plans that ask for the rollout, in the plans' order; `segments` has all others."""


def build(plans: Sequence[StepPlan], device: torch.device) -> Batch:
    """Flattens the plans in order. Raises AssertionError if a plan does not compute the rows that its targets need."""
    rows = np.concatenate([plan.rows for plan in plans])
    owners = np.repeat(np.arange(len(plans)), [len(plan.rows) for plan in plans])
    logit_rows = _logit_rows(plans, rows, owners)
    segments, watched = [], []
    for plan, segment in _segments(plans, owners, device):
        if plan.rollout:
            watched.append(Watched(segment, []))  # the plan's only segment: every row sees the whole canvas
        else:
            segments.append(segment)
    return Batch(
        ids=to_device(np.concatenate([plan.request.ids[plan.rows] for plan in plans]), device),
        positions=to_device(rows, device),
        slots=_places([plan.request.slots[plan.rows] for plan in plans], device),
        logit_rows=to_device(logit_rows, device),
        segments=tuple(segments),
        watched=tuple(watched),
    )


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


def _segments(plans: Sequence[StepPlan], owners: Ids, device: torch.device) -> Iterator[tuple[StepPlan, Segment]]:
    """Runs of one plan's rows with the same horizon; a model that attends in both directions has one for each plan."""
    horizons = np.concatenate([plan.horizons for plan in plans])
    ends = np.flatnonzero((np.diff(horizons) != 0) | (np.diff(owners) != 0)) + 1
    starts = np.concatenate(([0], ends))
    runs = zip(owners[starts].tolist(), horizons[starts].tolist(), starts.tolist(), strict=True)
    for (owner, horizon, start), stop in zip(runs, [*ends.tolist(), len(owners)], strict=True):
        yield plans[owner], Segment(start, stop, _neighbours(plans[owner].request.slots[:horizon], device))


def _places(slots: Sequence[Ids], device: torch.device) -> slice | Tensor:
    """KV slots of the rows of all plans."""
    return _neighbours(slots[0], device) if len(slots) == 1 else to_device(np.concatenate(slots), device)


def _neighbours(slots: Ids, device: torch.device) -> slice | Tensor:
    """A slice if these slots, in the order of one sequence's positions, are neighbours, else a tensor."""
    begin, last = int(slots[0]), int(slots[-1])
    # The ends alone rule out most scattered slots, but not all: pages may be in any order.
    if last - begin == len(slots) - 1 and bool((np.diff(slots) == 1).all()):
        return slice(begin, last + 1)
    return to_device(slots, device)
