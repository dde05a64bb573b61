"""Linear self-speculation (Nemotron-Labs-Diffusion's `linear_spec_generate`): a model verifies by causal rows what it
drafts by diffusion.

A block is drafted like any other, but for its last position. Then one forward over the same rows, each of which sees
nothing behind itself, says what an autoregressive model would. The draft stands up to the first token that differs;
that one is taken as said. So each verification yields a token at least, and the text is the autoregressive one.
"""

import numpy as np

from engine.core.arrays import Mask
from engine.core.ranking import top
from engine.core.requests.request import Request
from engine.core.steps.policies import UnmaskPolicy
from engine.core.steps.scores import Scores


class LinearSpec(UnmaskPolicy):
    """Drafts all that reaches the threshold, or the best; then takes what causal rows say, as far as the draft stands.

    The answer's first token has no draft: the prompt's last row says it.
    """

    drafts = True

    def block_length(self, request: Request) -> int:
        return 1 if request.masked[request.answer_start] else request.block_length

    def is_done(self, request: Request) -> bool:
        return request.block.is_settled

    def select(self, request: Request, scores: Scores) -> Mask:
        if not request.verifies:
            confident = scores.confidence >= request.diffusion.draft_threshold
            return confident if confident.any() else top(scores.log_odds, 1)
        stands = scores.tokens[:-1] == request.ids[scores.positions[:-1]]
        return np.append(True, np.logical_and.accumulate(stands))
