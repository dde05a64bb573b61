"""Cuts a step's targets into slices: with a large vocabulary, logits of all at once would be gigabytes.

Knows the plans and the size of a slice, but not what its logits are used for.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from engine.core.arrays import Ids
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Needs
from engine.kernels.transfer import Upload

TARGETS_AT_ONCE = 256
"""Bounds the memory of logits, sorting and noise, however many targets a step has (`execution.budget`). With a
vocabulary of 152,064, 256 rows are 150 MiB in float32, and scoring holds several such tensors. Chosen, not measured."""


class Logits(Protocol):
    """[targets of all plans, vocab], computed when they are asked for."""

    @property
    def proposed_at_once(self) -> int:
        """How many targets `propose` takes at once in no more memory than scoring is given."""
        ...

    def __getitem__(self, some: slice, /) -> Tensor:
        """Rows that may be overwritten."""
        ...

    def propose(self, some: slice, mask_id: int | None) -> tuple[Tensor, Tensor]:
        """The best tokens [some] but the mask, and their log-odds [some]. The logits need not be stored for it."""
        ...

    def remember(self, some: slice, rows: "Rows", probabilities: Tensor) -> None:
        """What these `rows` of `some` targets carry beside their tokens in the next step, by probabilities of theirs.

        float32 [rows, vocab].
        """
        ...

    def part(self, indices: Tensor) -> "Logits":
        """Those of the targets `indices`, int64 on the device."""
        ...


class Rows:
    """Ascending indices of some of a tensor's rows, which wait for the upload; nothing is copied for all of them."""

    def __init__(self, indices: Ids, total: int, upload: Upload) -> None:
        self._at = None if len(indices) == total else upload.add(indices)

    def of(self, tensor: Tensor) -> Tensor:
        """These rows: the tensor itself where that is all of them, else a copy."""
        return tensor if self._at is None else tensor[self._at.tensor]

    def put(self, tensor: Tensor, rows: Tensor) -> None:
        """Writes these rows in place."""
        if self._at is None:
            tensor.copy_(rows)
        else:
            tensor[self._at.tensor] = rows

    def part(self, logits: Logits) -> Logits:
        """These rows of logits that are not computed yet."""
        return logits if self._at is None else logits.part(self._at.tensor)

    def replaced(self, tensor: Tensor, rows: Tensor) -> Tensor:
        """The tensor with these rows, in a copy of it."""
        return rows if self._at is None else tensor.index_copy(0, self._at.tensor, rows)


class TargetSlice(NamedTuple):
    """Targets that are scored together."""

    some: slice
    """Their indices among all targets of the step."""
    plans: Sequence[StepPlan]
    """The plans of these targets. A plan that is cut has only its targets in this slice."""
    needs: Sequence[Needs]
    """The needs of these plans."""


def target_slices(plans: Sequence[StepPlan], needs: Sequence[Needs]) -> Iterator[TargetSlice]:
    """All targets in order, `TARGETS_AT_ONCE` in each slice but the last; a step with no more is one slice, uncut.

    Without targets there is no slice.
    """
    starts = [0, *accumulate(len(plan.targets) for plan in plans)]
    total = starts.pop()
    if 0 < total <= TARGETS_AT_ONCE:
        yield TargetSlice(slice(total), plans, needs)
        return
    for first in range(0, total, TARGETS_AT_ONCE):
        stop = first + TARGETS_AT_ONCE
        inside = slice(bisect_right(starts, first) - 1, bisect_left(starts, stop))
        some = [
            _trimmed(plan, first - start, stop - start)
            for plan, start in zip(plans[inside], starts[inside], strict=True)
        ]
        yield TargetSlice(slice(first, stop), some, needs[inside])


def _trimmed(plan: StepPlan, first: int, stop: int) -> StepPlan:
    """The plan with only its targets at indices [first, stop), which may reach beyond them at either end."""
    if first <= 0 and stop >= len(plan.targets):
        return plan
    return replace(plan, targets=plan.targets[max(first, 0) : stop])


def owned_by(wanted: Sequence[bool], counts: Sequence[int]) -> Ids:
    """Indices of the targets of the `wanted` plans, which have so many targets each."""
    return np.flatnonzero(np.repeat(wanted, counts))
