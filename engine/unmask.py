"""Unmask policies: which scored positions become tokens. Always at least one, so that every request ends.

They see one request's `Scores` on the host, never logits. A new policy is one class here and one line in `UNMASKS`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.noise import uniform
from engine.plan import Needs, Scores, StepPlan, UnmaskPolicy
from engine.request import Mask, Request


def _best_first(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices from the highest to the lowest, the leftmost first among equals."""
    return np.argsort(-values, kind="stable")


def _top(values: NDArray[np.float64], count: int) -> Mask:
    chosen = np.zeros(len(values), dtype=np.bool_)
    chosen[_best_first(values)[:count]] = True
    return chosen


def scheduled_tokens(request: Request) -> int:
    """Tokens due in this step: LLaDA's schedule (`get_num_transfer_tokens`, arXiv 2502.09992), never less than one.

    `steps` are spread evenly over the blocks, and a block's masks evenly over its steps; what does not divide goes
    to the first ones.
    """
    block, steps = request.block, request.diffusion.steps
    if steps is None:
        return 1
    share, extra = divmod(steps, request.num_blocks)
    in_block = max(share + (block.index < extra), 1)
    count, extra = divmod(block.num_masked, in_block)
    return max(count + (block.step < extra), 1)


class Fixed(UnmaskPolicy):
    """The most confident ones, as many as LLaDA's schedule says (its `low_confidence` remasking)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        return _top(scores.log_odds, scheduled_tokens(request))


class Random(UnmaskPolicy):
    """As many as LLaDA's schedule says, anywhere in the block (its `random` remasking)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        order = uniform(request.sampling.seed, request.targets, request.forwards)
        return _top(order, scheduled_tokens(request))


class Threshold(UnmaskPolicy):
    """All whose confidence reaches the threshold, and always the best (Fast-dLLM, arXiv 2505.22618, Algorithm 1)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        return _top(scores.log_odds, 1) | (scores.confidence >= request.diffusion.threshold)


class Factor(UnmaskPolicy):
    """The n most confident for the largest n with (n + 1)(1 - c_n) < factor, at least one (Fast-dLLM, section 3.3)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        ordered = scores.confidence[_best_first(scores.log_odds)]
        n = np.arange(1, len(ordered) + 1)
        fits = np.flatnonzero((n + 1) * (1.0 - ordered) < request.diffusion.factor)
        return _top(scores.log_odds, int(fits[-1]) + 1 if len(fits) else 1)


UNMASKS: dict[str, UnmaskPolicy] = {
    "fixed": Fixed(),
    "random": Random(),
    "threshold": Threshold(),
    "factor": Factor(),
}


def needs(plans: Sequence[StepPlan]) -> list[Needs]:
    """What each request's own policy must have in its scores."""
    return [UNMASKS[plan.request.diffusion.unmask].needs(plan.request.diffusion) for plan in plans]


def select(plans: Sequence[StepPlan], scores: Sequence[Scores]) -> list[Mask]:
    """Asks each request's own policy; the batch may hold any mix."""
    return [
        UNMASKS[plan.request.diffusion.unmask].select(plan.request, score)
        for plan, score in zip(plans, scores, strict=True)
    ]
