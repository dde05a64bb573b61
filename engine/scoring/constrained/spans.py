"""The open positions of a request's block, as its constraint sees them: tokens are classes, all to the left is a state.

Knows plans and constraints (`engine.core.constraint`), but neither scores nor what is reached.
"""

from dataclasses import dataclass

import numpy as np

from engine.core.arrays import Ids, Mask
from engine.core.constraint import Constraint
from engine.core.requests.request import Request
from engine.core.steps.plan import StepPlan

OPEN = -1
"""In place of a class: no token stands there."""
UNSCORED = -1
"""In place of a row: the step has no logits of the position."""


@dataclass(frozen=True, slots=True)
class OpenSpan:
    """Positions of one request's open block that its answer may reach, from the first masked one on."""

    constraint: Constraint
    start: int
    """The first position, which is masked."""
    state: int
    """Before that position: it is one state, since all tokens to the left are known."""
    fixed: Ids
    """[positions] the class of the token that stands there, or `OPEN`."""
    rows: Ids
    """[positions] which of the request's scored targets stands there, or `UNSCORED`."""
    room: int
    """Positions of the answer behind the span."""

    @classmethod
    def of(cls, plan: StepPlan) -> "OpenSpan":
        """The span of a plan whose request has a constraint."""
        rows = np.full(plan.request.canvas_end, UNSCORED)
        rows[plan.targets] = np.arange(len(plan.targets))
        return cls.on(plan.request, plan.request.ids, plan.request.masked, rows)

    @classmethod
    def on(cls, request: Request, ids: Ids, masked: Mask, rows: Ids) -> "OpenSpan":
        """The span of a canvas with these tokens and masks; `rows` [canvas] are of its positions."""
        constraint, block = request.constraint, request.block
        assert constraint is not None
        limit = min(block.end, request.output_end)
        first = max(block.start, request.answer_start)
        start = first + int(np.argmax(np.append(masked[first:limit], True)))
        state = constraint.advanced(request.state, ids[first:start])
        fixed = np.where(masked[start:limit], OPEN, constraint.classes[ids[start:limit]])
        return cls(constraint, start, state, fixed, rows[start:limit], request.output_end - limit)

    @property
    def num_rows(self) -> int:
        """Number of scored targets within it: the plan's first ones."""
        return int(np.count_nonzero(self.rows != UNSCORED))

    @property
    def ends(self) -> Mask:
        """bool [states + 1] in which it may end: END, and those near enough to an accepted end."""
        return np.append(self.constraint.distance <= self.room, True)
