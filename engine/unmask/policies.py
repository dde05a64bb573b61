"""Unmask policies: which scored positions become tokens. Always at least one while any is masked, so that all end.

They see one request's `Scores` on the host, never logits. A new policy is one class here and one line in `UNMASKS`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.core.arrays import Floats, Ids, Mask
from engine.core.density import certainty_density
from engine.core.noise import uniform
from engine.core.ranking import best_first, top
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.core.steps.choice import Choice
from engine.core.steps.plan import StepPlan
from engine.core.steps.policies import UnmaskPolicy
from engine.core.steps.scores import Needs, Scores
from engine.scoring.bans import hold_back
from engine.unmask.cad import Cad
from engine.unmask.dream import Dream
from engine.unmask.edit import Edit
from engine.unmask.insert_delete import InsertDelete
from engine.unmask.linear_spec import LinearSpec
from engine.unmask.remaining import ConfidenceThreshold, Leftmost, LowConfidence
from engine.unmask.renoise import Renoise
from engine.unmask.sdar import EntropyBounded, LowConfidenceDynamic, LowConfidenceStatic, Sequential, is_confident


def scheduled_tokens(request: Request) -> int:
    """Tokens due in this step: LLaDA's schedule (`get_num_transfer_tokens`, arXiv 2502.09992), never less than one.

    `steps` are spread evenly over the blocks, and a block's masks evenly over its steps; remainders go to the first
    blocks and steps.
    """
    block, steps = request.block, request.diffusion.steps
    if steps is None:
        return 1
    share, extra = divmod(steps, request.num_blocks)
    in_block = max(share + (block.index < extra), 1)
    count, extra = divmod(block.num_masked, in_block)
    return max(count + (block.step < extra), 1)


class Fixed(UnmaskPolicy):
    """The most confident targets, as many as LLaDA's schedule says (its `low_confidence` remasking)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        return top(scores.log_odds, scheduled_tokens(request))


class Random(UnmaskPolicy):
    """As many as LLaDA's schedule says, anywhere in the block (its `random` remasking)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        order = uniform(request.sampling.seed, scores.positions, request.decoding_steps)
        return top(order, scheduled_tokens(request))


class Threshold(UnmaskPolicy):
    """All targets whose confidence reaches the threshold, and the best (Fast-dLLM, arXiv 2505.22618, Algorithm 1).

    Block-causal models say themselves whether reaching it is enough (`ModelSpec.strict_threshold`).
    """

    def select(self, request: Request, scores: Scores) -> Mask:
        return top(scores.log_odds, 1) | is_confident(request, scores)

    def is_forced(self, request: Request, scores: Scores) -> bool:
        return not is_confident(request, scores).any()


class Factor(UnmaskPolicy):
    """The n most confident for the largest n with (n + 1)(1 - c_n) < factor, at least one (Fast-dLLM, section 3.3)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        ordered = scores.confidence[best_first(scores.log_odds)]
        n = np.arange(1, len(ordered) + 1)
        fits = np.flatnonzero((n + 1) * (1.0 - ordered) < request.diffusion.factor)
        return top(scores.log_odds, int(fits[-1]) + 1 if len(fits) else 1)

    def is_forced(self, request: Request, scores: Scores) -> bool:
        return bool((2 * (1.0 - scores.confidence) >= request.diffusion.factor).all())


class Entropy(UnmaskPolicy):
    """As many as LLaDA's schedule says, those of the lowest entropy first."""

    def needs(self, request: Request) -> Needs:
        return Needs(entropy=True)

    def select(self, request: Request, scores: Scores) -> Mask:
        assert scores.entropy is not None
        return top(-scores.entropy, scheduled_tokens(request))


class Margin(UnmaskPolicy):
    """As many as LLaDA's schedule says, those with the largest lead over the second best token first."""

    def needs(self, request: Request) -> Needs:
        return Needs(margin=True)

    def select(self, request: Request, scores: Scores) -> Mask:
        assert scores.margin is not None
        return top(scores.margin, scheduled_tokens(request))


class EntropyBound(UnmaskPolicy):
    """The n most confident for the largest n whose entropies, without the largest, sum to at most `gamma`.

    EB-Sampler (arXiv 2505.24857): that sum bounds the error of decoding them together. A single one has no such error.
    """

    def needs(self, request: Request) -> Needs:
        return Needs(entropy=True)

    def select(self, request: Request, scores: Scores) -> Mask:
        assert scores.entropy is not None
        ordered = scores.entropy[best_first(scores.log_odds)]
        neglected = np.cumsum(ordered) - np.maximum.accumulate(ordered)
        return top(scores.log_odds, int((neglected <= request.diffusion.gamma).sum()))


class Certainty(UnmaskPolicy):
    """As many as LLaDA's schedule says, the best by confidence x certainty density: nearly left to right (d2Cache)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        return top(_certainty(request, scores), scheduled_tokens(request))


class CertaintyThreshold(UnmaskPolicy):
    """All targets whose confidence x certainty density reaches the threshold, and always the best (d2Cache)."""

    def select(self, request: Request, scores: Scores) -> Mask:
        certainty = _certainty(request, scores)
        return top(certainty, 1) | (certainty >= request.diffusion.threshold)

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
    "sequential": Sequential(),
    "low_confidence_static": LowConfidenceStatic(),
    "low_confidence_dynamic": LowConfidenceDynamic(),
    "entropy_bounded": EntropyBounded(),
    "edit": Edit(),
    "insert_delete": InsertDelete(),
    "confidence_threshold": ConfidenceThreshold(),
    "low_confidence": LowConfidence(),
    "leftmost": Leftmost(),
    "linear_spec": LinearSpec(),
    "renoise": Renoise(),
}


def effective(submission: Submission) -> Submission:
    """The submission with what its policy makes of the canvas.

    Its block is the whole answer if the policy itself cuts the canvas; its last one may begin anywhere if it drafts.
    """
    policy = UNMASKS.get(submission.diffusion.unmask)
    if policy is None or not policy.cuts_canvas:
        return replace(submission, overshoots=policy is not None and policy.drafts)
    holes, length = submission.holes, submission.sampling.max_tokens
    if holes:
        length += holes[-1].offset - holes[0].offset  # with the known tokens between them
    return replace(submission, diffusion=replace(submission.diffusion, block_length=length))


def needs(plans: Sequence[StepPlan]) -> list[Needs]:
    """What each request's unmask policy needs in its scores."""
    return [UNMASKS[plan.request.diffusion.unmask].needs(plan.request) for plan in plans]


def choice(plan: StepPlan, scores: Scores) -> Choice:
    """What the request's unmask policy makes of its targets."""
    policy = UNMASKS[plan.request.diffusion.unmask]
    if policy.moves_tokens and len(plan.targets):
        rewritten = policy.rewrite(plan.request, scores)
        assert rewritten is not None, "a policy that moves tokens, and none"
        return Choice(plan, rewritten.scores, rewritten.chosen, rewritten=rewritten)
    chosen = select(plan, scores)
    return Choice(plan, scores, chosen, is_forced(plan, scores, chosen), shown(plan, scores, chosen))


def select(plan: StepPlan, scores: Scores) -> Mask:
    """bool [targets] that the request's unmask policy selects, of the open block's targets only."""
    request, count = plan.request, plan.num_open
    chosen = np.zeros(len(plan.targets), dtype=np.bool_)
    if not count:
        return chosen
    chosen[:count] = UNMASKS[request.diffusion.unmask].select(request, scores.first(count))
    return hold_back(request, scores, chosen) if request.sampling.bad_words else chosen


def shown(plan: StepPlan, scores: Scores, chosen: Mask) -> Ids | None:
    """[targets] what the request's masked targets show next; None where nothing changes, or none stays masked."""
    if not len(plan.targets) or chosen.all():
        return None
    return UNMASKS[plan.request.diffusion.unmask].shown(plan.request, scores.first(plan.num_open))


def is_forced(plan: StepPlan, scores: Scores, chosen: Mask) -> bool:
    """Whether `chosen` is a single token that is taken only because a step must take one."""
    if np.count_nonzero(chosen) != 1:
        return False
    return UNMASKS[plan.request.diffusion.unmask].is_forced(plan.request, scores.first(plan.num_open))
