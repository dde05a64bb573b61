"""What a step makes of the targets, not yet committed."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.core.arrays import Ids, Mask
from engine.core.requests.block import BlockEdits
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Scores


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What a step makes of the open block's targets where tokens may move."""

    scores: Scores
    """Tokens that the targets hold now, with the log-odds and log-probabilities of the step that wrote them."""
    chosen: Mask
    """bool [targets] that hold a token which this step has written."""
    masked: Mask
    """bool [targets] that are masked now."""
    sources: Ids
    """[targets] index of the target whose token it is; of a mask, its own or that of the token that asked for it."""
    is_settled: bool
    """Whether the block is finished, and has no mask."""
    edits: BlockEdits
    """What the policy keeps until the next step."""

    @property
    def moved(self) -> Mask:
        """bool [targets] that hold a token which was written at another place."""
        return np.asarray(~self.masked & (self.sources != np.arange(len(self.sources))))


class Choice(NamedTuple):
    """What one request's step chose, not yet committed."""

    plan: StepPlan
    scores: Scores
    chosen: Mask
    """bool [targets] which of the proposals become tokens, of a mask or in the place of another token."""
    is_forced: bool = False
    """Whether the only one that does is taken only because every step must take one."""
    shown: Ids | None = None
    """[targets] what those that stay masked show to the next step; None leaves what they show."""
    rewritten: Rewritten | None = None
    """What becomes of all targets, of a policy that moves tokens; `scores` and `chosen` are then its."""
