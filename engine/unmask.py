"""Unmask policies: which scored positions become tokens. Always at least one, so that every request ends.

They see one request's `Scores` on the host, never logits. A new policy is one class here and one line in `UNMASKS`.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.bans import hold_back
from engine.cad import Cad
from engine.density import certainty_density
from engine.noise import uniform
from engine.plan import Needs, Scores, StepPlan, UnmaskPolicy
from engine.request import Floats, Ids, Mask, Request, Submission, decoded_span


def _best_first(values: Floats) -> Ids:
    """Indices from the highest to the lowest, the leftmost first among equals."""
    return np.argsort(-values, kind="stable")


def _top(values: Floats, count: int) -> Mask:
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
        order = uniform(request.sampling.seed, scores.positions, request.forwards)
        return _top(order, scheduled_tokens(request))


class Threshold(UnmaskPolicy):
    """All whose confidence reaches the threshold, and always the best (Fast-dLLM, arXiv 2505.22618, Algorithm 1)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        return _top(scores.log_odds, 1) | (scores.confidence >= request.diffusion.threshold)

    def is_forced(self, request: Request, scores: Scores) -> bool:
        return bool((scores.confidence < request.diffusion.threshold).all())


class Factor(UnmaskPolicy):
    """The n most confident for the largest n with (n + 1)(1 - c_n) < factor, at least one (Fast-dLLM, section 3.3)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        ordered = scores.confidence[_best_first(scores.log_odds)]
        n = np.arange(1, len(ordered) + 1)
        fits = np.flatnonzero((n + 1) * (1.0 - ordered) < request.diffusion.factor)
        return _top(scores.log_odds, int(fits[-1]) + 1 if len(fits) else 1)

    def is_forced(self, request: Request, scores: Scores) -> bool:
        return bool((2 * (1.0 - scores.confidence) >= request.diffusion.factor).all())


@lru_cache(maxsize=64)
def dream_times(steps: int, eps: float) -> NDArray[np.float32]:
    """[steps + 1] the times from 1 down to eps between which Dream's steps lie, rounded as `torch.linspace` does it."""
    start, end = np.float32(1), np.float32(eps)
    i, step = np.arange(steps + 1, dtype=np.float32), (end - start) / np.float32(steps)
    times = np.where(i < (steps + 1) // 2, start + step * i, end - step * (np.float32(steps) - i))
    times.flags.writeable = False
    return times


@lru_cache(maxsize=64)
def dream_schedule(num_masked: int, steps: int, eps: float) -> tuple[int, ...]:
    """Tokens per step of Dream's sampler: of the masks left, the share 1 - s/t of a step from time t to s.

    Steps whose share is less than one token are left out: they would change nothing, so they need no forward.
    """
    times, counts, left = dream_times(steps, eps), [], num_masked
    for share in 1 - times[1:-1] / times[:-2]:
        counts.append(int(np.float32(left) * share))
        left -= counts[-1]
    return tuple(count for count in (*counts, left) if count)


class Dream(UnmaskPolicy):
    """Dream's own sampler (arXiv 2508.15487): over the canvas as one block, by `alg`, as many as its schedule says.

    Its scores are those of the processed distribution. `alg_temp` draws without replacement in proportion to
    exp(certainty / alg_temp), which is what the highest sums with Gumbel noise are.
    """

    cuts_canvas = True  # into one block

    def needs(self, request: Request) -> Needs:
        alg = request.diffusion.alg
        return Needs(processed=True, entropy=alg == "entropy", margin=alg == "topk_margin")

    def select(self, request: Request, scores: Scores) -> Mask:
        diffusion, block = request.diffusion, request.block
        steps = diffusion.steps or block.num_masked
        if diffusion.alg == "origin":
            return self._next_by_chance(request, scores, dream_times(steps, diffusion.eps))
        schedule = dream_schedule(block.num_masked, steps, diffusion.eps)
        certainty = self._certainty(diffusion.alg, scores)
        if diffusion.alg_temp:
            noise = uniform(request.sampling.seed, scores.positions, request.forwards)
            certainty = certainty / diffusion.alg_temp - np.log(-np.log(noise))
        return _top(certainty, schedule[min(block.step, len(schedule) - 1)])

    def _certainty(self, alg: str, scores: Scores) -> NDArray[np.float64]:
        match alg:
            case "entropy":
                assert scores.entropy is not None
                return -scores.entropy
            case "topk_margin":
                assert scores.margin is not None
                return scores.margin
            case _:
                return scores.confidence

    def _next_by_chance(self, request: Request, scores: Scores, times: NDArray[np.float32]) -> Mask:
        """`origin` reveals every mask with probability 1 - s/t in the step from t to s, and the last step the rest.

        So a mask is still there at time s with probability s: one uniform number per position is the time at which it
        goes. The targets of the earliest step that has any go now; steps without any need no forward.
        """
        moment = uniform(request.sampling.seed, scores.positions)
        step = np.minimum(np.searchsorted(-times[1:], -moment), len(times) - 2)
        return np.asarray(step == step.min())


class Entropy(UnmaskPolicy):
    """As many as LLaDA's schedule says, those of the lowest entropy first."""

    def needs(self, request: Request) -> Needs:
        return Needs(entropy=True)

    def select(self, request: Request, scores: Scores) -> Mask:
        assert scores.entropy is not None
        return _top(-scores.entropy, scheduled_tokens(request))


class Margin(UnmaskPolicy):
    """As many as LLaDA's schedule says, those first that lead most over the second best token."""

    def needs(self, request: Request) -> Needs:
        return Needs(margin=True)

    def select(self, request: Request, scores: Scores) -> Mask:
        assert scores.margin is not None
        return _top(scores.margin, scheduled_tokens(request))


class EntropyBound(UnmaskPolicy):
    """The n most confident for the largest n whose entropies, but for the largest, sum to `gamma` at most.

    EB-Sampler (arXiv 2505.24857): that sum bounds what decoding them together neglects. One alone neglects nothing.
    """

    def needs(self, request: Request) -> Needs:
        return Needs(entropy=True)

    def select(self, request: Request, scores: Scores) -> Mask:
        assert scores.entropy is not None
        ordered = scores.entropy[_best_first(scores.log_odds)]
        neglected = np.cumsum(ordered) - np.maximum.accumulate(ordered)
        return _top(scores.log_odds, int((neglected <= request.diffusion.gamma).sum()))


class Certainty(UnmaskPolicy):
    """As many as LLaDA's schedule says, the best by confidence x certainty density: nearly left to right (d2Cache)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        return _top(_certainty(request, scores), scheduled_tokens(request))


class CertaintyThreshold(UnmaskPolicy):
    """All whose confidence x certainty density reaches the threshold, and always the best (d2Cache)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        certainty = _certainty(request, scores)
        return _top(certainty, 1) | (certainty >= request.diffusion.threshold)

    def is_forced(self, request: Request, scores: Scores) -> bool:
        return bool((_certainty(request, scores) < request.diffusion.threshold).all())


def _certainty(request: Request, scores: Scores) -> Floats:
    density = certainty_density(~request.masked[request.answer_start :], request.diffusion.sigma)
    return scores.confidence * density[scores.positions - request.answer_start]


UNMASKS: dict[str, UnmaskPolicy] = {
    "fixed": Fixed(),
    "random": Random(),
    "threshold": Threshold(),
    "factor": Factor(),
    "cad": Cad(),
    "dream": Dream(),
    "entropy": Entropy(),
    "margin": Margin(),
    "entropy_bound": EntropyBound(),
    "certainty": Certainty(),
    "certainty_threshold": CertaintyThreshold(),
}


def effective(submission: Submission) -> Submission:
    """The submission with the block length that applies: all that is decoded, if its policy cuts that by itself."""
    policy = UNMASKS.get(submission.diffusion.unmask)
    if policy is None or not policy.cuts_canvas:
        return submission
    length = submission.sampling.max_tokens
    if submission.holes:
        start, end = decoded_span(submission)
        length = end - start
    return replace(submission, diffusion=replace(submission.diffusion, block_length=length))


def needs(plans: Sequence[StepPlan]) -> list[Needs]:
    """What each request's own policy must have in its scores."""
    return [UNMASKS[plan.request.diffusion.unmask].needs(plan.request) for plan in plans]


def select(plans: Sequence[StepPlan], scores: Sequence[Scores]) -> list[Mask]:
    """Asks each request's own policy for bool [targets]; the batch may hold any mix."""
    return [_select(plan, score) for plan, score in zip(plans, scores, strict=True)]


def is_forced(plan: StepPlan, score: Scores, chosen: Mask) -> bool:
    """Whether this one token is taken only because a step must take one."""
    if np.count_nonzero(chosen) != 1:
        return False
    return UNMASKS[plan.request.diffusion.unmask].is_forced(plan.request, score.first(plan.num_open))


def _select(plan: StepPlan, score: Scores) -> Mask:
    request, count = plan.request, plan.num_open
    chosen = np.zeros(len(plan.targets), dtype=np.bool_)
    chosen[:count] = UNMASKS[request.diffusion.unmask].select(request, score.first(count))
    return hold_back(request, score, chosen) if request.sampling.bad_words else chosen
