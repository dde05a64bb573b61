"""Which states of their automata requests can be in, position by position, and which edges lead on: before any logits.

Works on all constrained requests of a step at once: their states and edges stand side by side. Knows plans and
constraints (`engine.core.constraint`), but no scores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.core.constraint import Constraint
from engine.core.plan import StepPlan
from engine.core.request import Ids, Mask, Request

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
        span = cls.on(plan.request, plan.request.ids, plan.request.masked, rows)
        assert span.state != span.constraint.dead, "tokens that the constraint does not allow; this is a bug"
        return span

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


class Reach:
    """The live edges of some spans: those on a way from the span's state to an end that `room` allows.

    Spans end together: `places` count positions, so that the last one of each span is the last place. A span that is
    shorter than the longest begins later. States and edges of all spans are numbered through.
    """

    def __init__(self, spans: Sequence[OpenSpan]) -> None:
        self.spans = spans
        self.num_places = max(len(span.fixed) for span in spans)
        self.firsts = self.num_places - np.array([len(span.fixed) for span in spans])
        """[spans] the first place of each."""
        automata = [span.constraint for span in spans]
        sizes, counts = [one.num_states + 1 for one in automata], [len(one.edge_src) for one in automata]
        self.offsets = np.cumsum([0, *sizes])
        """[spans + 1] the number of each one's first state."""
        self.owner = np.repeat(np.arange(len(spans)), counts)
        """[edges] the span of each."""
        shift = np.repeat(self.offsets[:-1], counts)
        self.src = shift + np.concatenate([one.edge_src for one in automata])
        self.dst = shift + np.concatenate([one.edge_dst for one in automata])
        self.label = np.concatenate([one.edge_label for one in automata])
        self.starts = self.offsets[:-1] + np.array([span.state for span in spans])
        """[spans] the state of each before its first place."""
        self.live = np.zeros((self.num_places, len(self.src)), np.bool_)
        """[places, edges] whether the edge may be taken there."""
        self.fixed_src: list[Ids] = []
        self.fixed_dst: list[Ids] = []
        """For each place: the states before and behind tokens that stand there, of all spans that hold one."""
        self.viable = self._ahead()
        """[places + 1, states] that lie on a way."""
        self._keep_viable()

    def is_possible(self) -> Mask:
        """[spans] whether there is any way through."""
        return np.asarray(self.viable[self.firsts, self.starts])

    def allowed(self, number: int) -> Mask:
        """bool [rows, classes] of span `number`: which classes may stand at its scored targets."""
        span, first = self.spans[number], int(self.firsts[number])
        constraint = span.constraint
        allowed = np.zeros((span.num_rows, constraint.num_classes), np.bool_)
        own = slice(*np.searchsorted(self.owner, (number, number + 1)))
        classes, starts = constraint.label_classes, constraint.label_start
        for place in np.flatnonzero(span.rows != UNSCORED).tolist():
            for label in np.unique(self.label[own][self.live[first + place, own]]).tolist():
                allowed[span.rows[place], classes[starts[label] : starts[label + 1]]] = True
        return allowed

    def _ahead(self) -> Mask:
        """The states that can be reached from the left; marks the edges that leave them."""
        ahead = np.zeros((self.num_places + 1, int(self.offsets[-1])), np.bool_)
        ahead[self.firsts, self.starts] = True
        is_open = np.zeros((self.num_places, len(self.spans)), np.bool_)
        for number, span in enumerate(self.spans):
            is_open[self.firsts[number] :, number] = span.fixed == OPEN
        for place, (src, dst) in enumerate(self._through_tokens()):
            here, onwards = ahead[place], ahead[place + 1]
            live = self.live[place] = here[self.src] & is_open[place][self.owner]
            onwards[self.dst[live]] = True
            reached = here[src]
            self.fixed_src.append(src[reached])
            self.fixed_dst.append(dst[reached])
            onwards[self.fixed_dst[-1]] = True
        return ahead

    def _through_tokens(self) -> Iterator[tuple[Ids, Ids]]:
        """For each place, from each state to the one behind the token that a span holds there."""
        pairs: list[list[Ids]] = [[np.empty((2, 0), np.int64)] for _ in range(self.num_places)]
        for number, span in enumerate(self.spans):
            constraint, offset = span.constraint, int(self.offsets[number])
            places = np.flatnonzero(span.fixed != OPEN)
            to = constraint.step[: constraint.end + 1, span.fixed[places]].T
            to[:, constraint.end] = constraint.end  # behind the answer, any token may stand
            for place, dst in zip((self.firsts[number] + places).tolist(), to, strict=True):
                src = np.flatnonzero(dst <= constraint.end)
                pairs[place].append(np.stack((src, dst[src])) + offset)
        for held in pairs:
            src, dst = np.concatenate(held, axis=1)
            yield src, dst

    def _keep_viable(self) -> None:
        """Leaves, from the right, what leads to a state from which the answer can end in time."""
        viable = self.viable
        viable[-1] &= np.concatenate([_ends(span) for span in self.spans])
        for place in range(self.num_places - 1, -1, -1):
            behind, before = viable[place + 1], np.zeros(viable.shape[1], np.bool_)
            self.live[place] &= behind[self.dst]
            kept = behind[self.fixed_dst[place]]
            self.fixed_src[place], self.fixed_dst[place] = self.fixed_src[place][kept], self.fixed_dst[place][kept]
            before[self.src[self.live[place]]] = True
            before[self.fixed_src[place]] = True
            viable[place] = before


def is_completable(request: Request, positions: Ids, tokens: Ids) -> bool:
    """Whether the answer can still be finished in time if these positions of the open block become these tokens."""
    ids, masked = request.ids.copy(), request.masked.copy()
    ids[positions], masked[positions] = tokens, False
    span = OpenSpan.on(request, ids, masked, np.full(len(ids), UNSCORED))
    if span.state == span.constraint.dead:
        return False
    if not len(span.fixed):
        return bool(_ends(span)[span.state])
    return bool(Reach([span]).is_possible()[0])


def _ends(span: OpenSpan) -> NDArray[np.bool_]:
    """bool [states + 1] in which a span may end: END, and those near enough to an accepted end."""
    return np.append(span.constraint.distance <= span.room, True)
