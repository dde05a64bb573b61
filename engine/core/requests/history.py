"""What a request's steps so far have said, for policies that read it."""

from dataclasses import dataclass, field

import numpy as np

from engine.core.arrays import Floats, Ids


@dataclass(slots=True)
class History:
    """Results of the steps so far. Arrays cover the canvas, prompt included.

    `decoded` is kept for every request, all else for those whose policies read it (`reads_history`).
    """

    confidence: Floats
    """[end] of each position's proposal when it was last scored; 0 where it never was."""
    importance: Floats
    """[end] attention that reaches each position, as last measured (`engine.kernels.rollout`); 0 where it never was."""
    decoded: Ids
    """Positions that the last step decoded, ascending."""
    mean_confidence: list[float] = field(default_factory=list)
    """Of each step: the mean over the open block's targets."""
    tokens: list[int] = field(default_factory=list)
    """All decoded tokens, in the order of steps, and of positions within a step."""

    @classmethod
    def empty(cls, end: int) -> "History":
        """Before the first step of a canvas that ends at `end`."""
        return cls(confidence=np.zeros(end), importance=np.zeros(end), decoded=np.empty(0, np.int64))
