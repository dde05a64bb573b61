"""Policies whose schedule is of what remains: the masks of the open block, over the steps that it has left.

vLLM's sampler for Nemotron-Labs-Diffusion (`nemotron_dllm`), under the names they have there. A block has
`denoising_steps`, however many masks it opens with, and as many as it is long by default. Its sub-blocks share them.
"""

import numpy as np

from engine.core.arrays import Mask
from engine.core.ranking import top
from engine.core.requests.request import Request
from engine.core.steps.policies import UnmaskPolicy
from engine.core.steps.scores import Scores
from engine.unmask.sdar import is_confident


def steps_left(request: Request) -> int:
    """Steps of the open block that are not done, this one among them; at least one."""
    return max((request.diffusion.denoising_steps or request.block_length) - request.block.step, 1)


def due(request: Request, scores: Scores) -> int:
    """Tokens of this step if all that are left have as many, rounded up; at most its targets."""
    num_masked = int(request.masked[request.block.start : request.block.rows_end].sum())
    return min(-(-num_masked // steps_left(request)), len(scores.positions))


class ConfidenceThreshold(UnmaskPolicy):
    """All targets whose confidence reaches the threshold, and always the best.

    All of them where as many are due: in a block's last step, or earlier in a sub-block, so that the others have steps.
    """

    def select(self, request: Request, scores: Scores) -> Mask:
        if due(request, scores) == len(scores.positions):
            return np.ones(len(scores.positions), np.bool_)
        return top(scores.log_odds, 1) | is_confident(request, scores)

    def is_forced(self, request: Request, scores: Scores) -> bool:
        return not is_confident(request, scores).any()


class LowConfidence(UnmaskPolicy):
    """The most confident targets, as many as are due."""

    def select(self, request: Request, scores: Scores) -> Mask:
        return top(scores.log_odds, due(request, scores))


class Leftmost(UnmaskPolicy):
    """The first targets, as many as are due."""

    def select(self, request: Request, scores: Scores) -> Mask:
        return np.asarray(np.arange(len(scores.positions)) < due(request, scores))
