"""What one request asks of one forward.

A step computes rows; row i then attends to positions [0, horizons[i]); the logits of the targets are scored.
Independent of what makes a plan and what carries it out.
"""

from dataclasses import dataclass

import numpy as np

from engine.core.arrays import Ids, Mask
from engine.core.requests.request import Request


@dataclass(frozen=True, slots=True)
class Eviction:
    """Which keys and values a plan's request gives up after the step, and by what its kernels judge them."""

    candidates: Ids
    """Positions of which some go, ascending."""
    keep: int
    """How many of them stay."""
    judges: slice
    """Of the plan's rows: neighbours behind all candidates, which stay."""
    weight: float | None
    """As `kernels.kv.retention` takes it; None if no attention is asked for."""

    @property
    def end(self) -> int:
        """One past the last candidate."""
        return int(self.candidates[-1]) + 1


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one request asks of one forward. Positions are of its own canvas, ascending."""

    request: Request
    rows: Ids
    """Positions to compute."""
    horizons: Ids
    """For each row, one past the last position that it sees."""
    targets: Ids
    """Positions to score: masked ones, and in a block that `replaces_tokens` decoded ones, too.

    The logits of each come from one of the `sources`, which are among `rows`.

    A plan without targets only computes keys and values.

    Targets behind the open block are scored for a cache policy that ranks them; they do not become tokens yet.
    """
    rollout: bool = False
    """Asks for `Scores.importance`, which takes attention weights."""
    is_causal: bool = False
    """Whether finished rows say the targets: the logits of target t come from row t - 1, whatever the model's shift."""
    eviction: Eviction | None = None
    """Behind this step, where the request keeps only so many keys and values and has too many."""

    @property
    def sources(self) -> Ids:
        """For each target, the row that has its logits."""
        return np.maximum(self.targets - (1 if self.is_causal else self.request.spec.shift), 0)

    @property
    def is_draft(self) -> bool:
        """Whether what it decodes is a draft, of which a later step says whether it stands."""
        return self.request.block.is_drafted and not self.is_causal

    @property
    def adapted(self) -> Mask:
        """bool [rows] that go through the model's adapter: the open block's, where they make a draft."""
        request = self.request
        is_asked = self.is_draft and request.diffusion.draft_adapter and request.spec.has_draft_adapter
        return np.asarray(is_asked & (self.rows >= request.block.rows_start))

    @property
    def num_open(self) -> int:
        """How many targets may become tokens now: those of the open block, which come first."""
        targets, count, end = self.targets, len(self.targets), self.request.block.end
        return count if not count or targets[-1] < end else int(np.searchsorted(targets, end))
