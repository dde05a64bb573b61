"""A step's targets, some at a time: their logits all at once would be gigabytes where a vocabulary is large.

Knows which plans a part is of, and how large one is; nothing of what is made of its logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple, Protocol

from torch import Tensor

from engine.plan import Needs, StepPlan

TARGETS_AT_ONCE = 256
"""Bounds what logits, sorting and noise take, however many targets a step has (`engine.budget`): of a vocabulary of
152,064, 256 rows are 150 MiB in float32, and there are several of them."""


class Logits(Protocol):
    """[targets of all plans, vocab]: a tensor, or what computes the rows that are asked for."""

    def __getitem__(self, some: slice, /) -> Tensor:
        """Rows that may be overwritten."""
        ...


class Part(NamedTuple):
    """Targets that are scored together."""

    some: slice
    """Among all targets of the step."""
    plans: Sequence[StepPlan]
    """Whose they are: a plan that is cut has those of its targets alone."""
    needs: Sequence[Needs]
    """Of these plans."""


def parts(plans: Sequence[StepPlan], needs: Sequence[Needs]) -> Iterator[Part]:
    """All targets in order, `TARGETS_AT_ONCE` in each part but the last; a step of no more is one part as it is."""
    starts = [0, *accumulate(len(plan.targets) for plan in plans)]
    total = starts.pop()
    if total <= TARGETS_AT_ONCE:
        yield Part(slice(total), plans, needs)
        return
    for first in range(0, total, TARGETS_AT_ONCE):
        stop = first + TARGETS_AT_ONCE
        shares = [
            plan.targets[max(first - start, 0) : max(stop - start, 0)]
            for plan, start in zip(plans, starts, strict=True)
        ]
        inside = [number for number, share in enumerate(shares) if len(share)]
        yield Part(
            slice(first, stop),
            [replace(plans[number], targets=shares[number]) for number in inside],
            [needs[number] for number in inside],
        )
