"""A step's targets, some at a time: their logits all at once would be gigabytes where a vocabulary is large.

Knows which plans a slice is of, and how large one is; nothing of what is made of its logits.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple, Protocol

from torch import Tensor

from engine.core.plan import Needs, StepPlan

TARGETS_AT_ONCE = 256
"""Bounds what logits, sorting and noise take, however many targets a step has (`execution.budget`): of a vocabulary of
152,064, 256 rows are 150 MiB in float32, and there are several of them."""


class Logits(Protocol):
    """[targets of all plans, vocab]: a tensor, or what computes the rows that are asked for."""

    def __getitem__(self, some: slice, /) -> Tensor:
        """Rows that may be overwritten."""
        ...


class TargetSlice(NamedTuple):
    """Targets that are scored together."""

    some: slice
    """Among all targets of the step."""
    plans: Sequence[StepPlan]
    """Whose they are: a plan that is cut has those of its targets alone."""
    needs: Sequence[Needs]
    """Of these plans."""


def target_slices(plans: Sequence[StepPlan], needs: Sequence[Needs]) -> Iterator[TargetSlice]:
    """All targets in order, `TARGETS_AT_ONCE` in each slice but the last; a step of no more is one slice as it is."""
    starts = [0, *accumulate(len(plan.targets) for plan in plans)]
    total = starts.pop()
    if total <= TARGETS_AT_ONCE:
        yield TargetSlice(slice(total), plans, needs)
        return
    for first in range(0, total, TARGETS_AT_ONCE):
        stop = first + TARGETS_AT_ONCE
        inside = slice(bisect_right(starts, first) - 1, bisect_left(starts, stop))
        some = [
            _cut(plan, first - start, stop - start) for plan, start in zip(plans[inside], starts[inside], strict=True)
        ]
        yield TargetSlice(slice(first, stop), some, needs[inside])


def _cut(plan: StepPlan, first: int, stop: int) -> StepPlan:
    """With those of its targets alone that lie in [first, stop), which may reach beyond them at either end."""
    if first <= 0 and stop >= len(plan.targets):
        return plan
    return replace(plan, targets=plan.targets[max(first, 0) : stop])
