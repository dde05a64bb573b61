"""Which states of their automata requests can be in, position by position, and which edges lead on: before any logits.

Works on all constrained requests of a step at once: their states and edges stand side by side. Knows plans and
constraints (`engine.core.constraint`), but no scores.
"""

from collections.abc import Sequence
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
class Span:
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
    def of(cls, plan: StepPlan) -> "Span":
        """The span of a plan whose request has a constraint."""
        rows = np.full(plan.request.canvas_end, UNSCORED)
        rows[plan.targets] = np.arange(len(plan.targets))
        return cls.on(plan.request, plan.request.ids, plan.request.masked, rows)

    @classmethod
    def on(cls, request: Request, ids: Ids, masked: Mask, rows: Ids) -> "Span":
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

    def __init__(self, spans: Sequence[Span]) -> None:
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
        edge_offsets = np.cumsum([0, *counts[:-1]])
        self.by_dst = np.concatenate(
            [one.edges_by_dst + offset for one, offset in zip(automata, edge_offsets, strict=True)]
        )
        """[edges] indices of the edges, ascending by the state that they lead to."""
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
        ahead[self.firsts, self.starts] = [span.state != span.constraint.dead for span in self.spans]
        is_open, held = self._occupied()
        for place in range(self.num_places):
            live = self.live[place] = ahead[place][self.src] & is_open[place][self.owner]
            ahead[place + 1][self.dst[live]] = True
            src, dst = self._through_tokens(ahead[place], held[place])
            ahead[place + 1][dst] = True
            self.fixed_src.append(src)
            self.fixed_dst.append(dst)
        return ahead

    def _occupied(self) -> tuple[Mask, list[list[tuple[int, int]]]]:
        """bool [places, spans] where a span has a masked position; the (span, class) pairs of each place's tokens."""
        is_open = np.zeros((self.num_places, len(self.spans)), np.bool_)
        held: list[list[tuple[int, int]]] = [[] for _ in range(self.num_places)]
        for number, span in enumerate(self.spans):
            first = int(self.firsts[number])
            is_open[first:, number] = span.fixed == OPEN
            for place in np.flatnonzero(span.fixed != OPEN).tolist():
                held[first + place].append((number, int(span.fixed[place])))
        return is_open, held

    def _through_tokens(self, ahead: Mask, held: Sequence[tuple[int, int]]) -> tuple[Ids, Ids]:
        """From each state ahead to the one behind the token: behind the answer, any token may stand."""
        pairs = [np.empty((2, 0), np.int64)]
        for number, token_class in held:
            constraint, offset = self.spans[number].constraint, self.offsets[number]
            src = np.flatnonzero(ahead[offset : self.offsets[number + 1]])
            dst = np.where(src == constraint.end, constraint.end, constraint.step[src, token_class])
            pairs.append(offset + np.stack((src, dst))[:, dst <= constraint.end])
        src, dst = np.concatenate(pairs, axis=1)
        return src, dst

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
    span = Span.on(request, ids, masked, np.full(len(ids), UNSCORED))
    if not len(span.fixed):
        return span.state <= span.constraint.end and bool(_ends(span)[span.state])
    return bool(Reach([span]).is_possible()[0])


def _ends(span: Span) -> NDArray[np.bool_]:
    """bool [states + 1] in which a span may end: END, and those near enough to an accepted end."""
    return np.append(span.constraint.distance <= span.room, True)
