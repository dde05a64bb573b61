"""Step plans of many requests -> the flat tensors of one forward.

Knows rows, slots and horizons; no policy, no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.attention import Segment, Watched
from engine.plan import StepPlan
from engine.request import Ids
from engine.transfer import to_device


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
    """Those whose plans ask for the rollout, in the plans' order, apart from all others."""


def build(plans: Sequence[StepPlan], device: torch.device) -> Batch:
    """Flattens the plans in order. Raises AssertionError if a plan does not compute the rows that its targets need."""
    logit_rows, segments, watched = [], [], []
    first = 0
    for plan in plans:
        sources = np.maximum(plan.targets - plan.request.spec.shift, 0)
        indices = np.searchsorted(plan.rows, sources)
        assert (plan.rows[np.minimum(indices, len(plan.rows) - 1)] == sources).all(), "a target without its row"
        logit_rows.append(first + indices)
        if plan.rollout:
            [segment] = _segments(plan, first, device)  # every row sees the whole canvas
            watched.append(Watched(segment, []))
        else:
            segments.extend(_segments(plan, first, device))
        first += len(plan.rows)
    return Batch(
        ids=to_device(np.concatenate([plan.request.ids[plan.rows] for plan in plans]), device),
        positions=to_device(np.concatenate([plan.rows for plan in plans]), device),
        slots=_places([plan.request.slots[plan.rows] for plan in plans], device),
        logit_rows=to_device(np.concatenate(logit_rows), device),
        segments=tuple(segments),
        watched=tuple(watched),
    )


def _segments(plan: StepPlan, first: int, device: torch.device) -> list[Segment]:
    """Runs of rows with the same horizon; a model that attends in both directions makes a single one."""
    starts = np.flatnonzero(np.diff(plan.horizons, prepend=-1))
    stops = np.append(starts[1:], len(plan.rows))
    return [
        Segment(
            first + int(start), first + int(stop), _neighbours(plan.request.slots[: int(plan.horizons[start])], device)
        )
        for start, stop in zip(starts, stops, strict=True)
    ]


def _places(slots: Sequence[Ids], device: torch.device) -> slice | Tensor:
    """Of the rows of all plans."""
    return _neighbours(slots[0], device) if len(slots) == 1 else to_device(np.concatenate(slots), device)


def _neighbours(slots: Ids, device: torch.device) -> slice | Tensor:
    """Slots of some positions of one sequence, in order; pages stand in any order."""
    begin, last = int(slots[0]), int(slots[-1])
    # The ends alone tell most tables that are scattered, and not all of them.
    if last - begin == len(slots) - 1 and bool((np.diff(slots) == 1).all()):
        return slice(begin, last + 1)
    return to_device(slots, device)
