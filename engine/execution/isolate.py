"""Runs a step in which one request may fail: the others get exactly the tokens that they get without it.

Knows how a batch is retried, but not what is computed in it.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from engine.core.errors import DeviceLost
from engine.core.steps.choice import Choice
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Scores
from engine.scheduling.faults import Faults
from engine.scoring.constrained.native import is_completable
from engine.unmask.policies import choice

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_MEMORY_WORDS = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")


def in_halves(
    plans: Sequence[StepPlan],
    work: Callable[[Sequence[StepPlan]], Sequence[Result]],
    faults: Faults,
    on_memory_short: Callable[[int], None],
    is_divisible: Callable[[StepPlan], bool] = lambda _: False,
) -> tuple[list[StepPlan], list[Result]]:
    """Calls `work` with all plans at once. Returns the plans that succeed, in order, and the result of each.

    If `work` raises, its plans are retried in halves, down to single plans: a plan that raises alone is at fault. Keys
    and values are a pure function of what a step reads, so that a retry writes the same ones again. If memory is short,
    `on_memory_short` is called with the number of rows, cached memory is released to the device, and a single plan is
    retried once. If that fails and the plan `is_divisible`, it is left out: a later step computes a part of it. Raises
    DeviceLost if the device itself has failed: all later calls would fail, too.
    """
    served: list[StepPlan] = []
    results: list[Result] = []
    pending = [list(plans)]
    given_room: set[str] = set()  # requests that have had their second try
    while pending:
        if not (part := pending.pop()):
            continue
        try:
            results += work(part)
            served += part
            continue
        except DeviceLost:
            raise
        except Exception as error:
            if is_device_lost():
                raise DeviceLost(f"The device has failed: {error}") from error
            is_short = is_memory_short(error)
            is_last_try = len(part) == 1 and not (is_short and part[0].request.id not in given_room)
            if is_last_try and not (is_short and is_divisible(part[0])):
                faults.add(part[0].request, error)
        # Outside the except clause, because the exception keeps the failed attempt's tensors in memory.
        if is_short:
            given_room.update(plan.request.id for plan in part if len(part) == 1)
            _release_memory(part, on_memory_short)
        if not is_last_try:
            half = (len(part) + 1) // 2
            pending += [part[half:], part[:half]]
    return served, results


def choose(plans: Sequence[StepPlan], scores: Sequence[Scores], faults: Faults) -> list[Choice]:
    """What each request's unmask policy selects. NaN scores, and errors that a policy raises, go to `faults`.

    Where a constraint leaves the proposals to the model, the selected ones must be able to become a valid answer; if
    they are not, the policy selects among those that are.
    """
    choices = []
    for plan, score in zip(plans, scores, strict=True):
        with faults.of(plan.request):
            _check(score)
            chosen = choice(plan, score)
            positions, tokens = plan.targets[chosen.chosen], score.tokens[chosen.chosen]
            if score.valid is not None and not is_completable(plan.request, positions, tokens):
                chosen = choice(plan, score.valid)
            choices.append(chosen)
    return choices


def is_memory_short(error: Exception) -> bool:
    """Whether memory ran out, so that fewer rows at once may succeed. torch reports this in more than one way."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)


def is_device_lost() -> bool:
    """Whether every later call will fail, too: a CUDA context does not survive an illegal access or an assertion.

    Synchronises the device to find out: errors of a single call (of cuBLAS, of a launch) have the same texts.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _release_memory(part: Sequence[StepPlan], on_memory_short: Callable[[int], None]) -> None:
    rows = sum(len(plan.rows) for plan in part)
    logger.warning("out of memory with %d rows of %d requests; trying again with fewer", rows, len(part))
    torch.cuda.empty_cache()  # does nothing where CUDA is not in use
    on_memory_short(rows)


def _check(scores: Scores) -> None:
    """Raises ArithmeticError on NaN. Infinite log-odds are valid, for example of the only token that may be drawn."""
    assert scores.is_possible, "a constraint that nothing can satisfy any more; this is a bug"
    for values in (scores.log_odds, scores.entropy, scores.margin, scores.importance, scores.retention):
        # A minimum is NaN if any value is, and takes half the time of asking each.
        if values is not None and len(values) and np.isnan(values.min()):
            raise ArithmeticError("the model's scores are not numbers (NaN)")
