"""The remasking strategies of SDAR's `block_diffusion_generate` (arXiv 2510.06303), under the names they have there.

Their schedule is a block's own: the tokens of a full block are spread evenly over `denoising_steps`, the remainder over
the first steps. A block that holds tokens of the prompt has the same schedule, and ends before it.
"""

import numpy as np

from engine.core.arrays import Mask
from engine.core.ranking import top
from engine.core.requests.request import Request
from engine.core.steps.policies import UnmaskPolicy
from engine.core.steps.scores import Needs, Scores


def is_confident(request: Request, scores: Scores) -> Mask:
    """bool [targets] whose confidence passes the threshold."""
    confidence, threshold = scores.confidence, request.diffusion.threshold
    return confidence > threshold if request.spec.strict_threshold else confidence >= threshold


def due(request: Request) -> int:
    """Tokens due in this step of the open block, at least one."""
    steps = request.diffusion.denoising_steps or request.block_length
    share, extra = divmod(request.block_length, steps)
    return max(share + (request.block.step < extra), 1)


class Sequential(UnmaskPolicy):
    """The leftmost targets, as many as are due."""

    def select(self, request: Request, scores: Scores) -> Mask:
        return np.asarray(scores.positions < scores.positions[0] + due(request))


class LowConfidenceStatic(UnmaskPolicy):
    """The most confident targets, as many as are due."""

    def select(self, request: Request, scores: Scores) -> Mask:
        return top(scores.log_odds, due(request))


class LowConfidenceDynamic(UnmaskPolicy):
    """All targets whose confidence passes the threshold; if these are fewer than due, the most confident ones."""

    def select(self, request: Request, scores: Scores) -> Mask:
        confident, count = is_confident(request, scores), due(request)
        return confident if np.count_nonzero(confident) >= count else top(scores.log_odds, count)

    def is_forced(self, request: Request, scores: Scores) -> bool:
        return not is_confident(request, scores).any()


class EntropyBounded(UnmaskPolicy):
    """The n targets of the lowest entropy for the largest n whose entropies sum to less than `gamma`, at least one."""

    def needs(self, request: Request) -> Needs:
        return Needs(entropy=True)

    def select(self, request: Request, scores: Scores) -> Mask:
        assert scores.entropy is not None
        below = np.cumsum(np.sort(scores.entropy)) < request.diffusion.gamma
        return top(-scores.entropy, max(int(below.sum()), 1))
