"""Token editing (LLaDA2.1, arXiv 2602.08676): a step fills masks, and replaces tokens that the model would not choose.

The open block's tokens behind the prompt are all targets, masked or not, so that one forward does both. While a block
has masks each step fills one at least; without masks it has at most `max_post_steps` more. So every block ends.
"""

import numpy as np

from engine.core.arrays import Mask
from engine.core.config import ModelSpec
from engine.core.ranking import top
from engine.core.requests.request import Request
from engine.core.steps.policies import UnmaskPolicy
from engine.core.steps.scores import Scores
from engine.unmask.sdar import is_confident


class Edit(UnmaskPolicy):
    """Fills masks that pass the threshold, the `num_to_transfer` most confident at least.

    A decoded token becomes another one whose confidence exceeds `editing_threshold`.
    """

    replaces_tokens = True

    def fits(self, spec: ModelSpec) -> bool:
        """Block-causal models only: keys and values of other blocks are computed before or after all replacements."""
        return super().fits(spec) and spec.is_block_causal and not spec.shift

    def is_done(self, request: Request) -> bool:
        block = request.block
        if request.masked[block.start : block.end].any():
            return False
        return block.is_settled or block.post_steps >= request.diffusion.max_post_steps

    def select(self, request: Request, scores: Scores) -> Mask:
        masked, diffusion = request.masked[scores.positions], request.diffusion
        filled = masked & is_confident(request, scores)
        if np.count_nonzero(filled) < diffusion.num_to_transfer:
            filled = masked & top(np.where(masked, scores.log_odds, -np.inf), diffusion.num_to_transfer)
        differs = scores.tokens != request.ids[scores.positions]
        replaced = ~masked & differs & (scores.confidence > diffusion.editing_threshold)
        return np.asarray(filled | replaced)

    def is_forced(self, request: Request, scores: Scores) -> bool:
        masked = request.masked[scores.positions]
        return bool(masked.any() and not (masked & is_confident(request, scores)).any())
