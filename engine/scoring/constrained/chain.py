"""Which ways a span's open positions leave through its automaton, what they weigh, the best one, and draws.

Positions are independent given the model, and the automaton ties them together: a chain, with one pass from the right
and one from the left. In float64. Each span by itself, so that nothing depends on the batch, and nothing is kept for
each edge and position, so that memory is of states and positions alone. Knows numbers of classes, but no logits.

A position that the step has no logits of says nothing: the live edges that leave a state there weigh the same, and as
much as one token together. What is decoded there later is chosen with its own logits, and with the tokens around it
known, so that the answer stays completable.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.core.arrays import Floats, Ids, Mask
from engine.core.noise import continued, hashed
from engine.scoring.constrained.spans import OPEN, UNSCORED, OpenSpan

NOTHING = -1e9
"""Logarithm of the weight of a class whose tokens the model gives none."""
LEAST = 1e-300
"""The least posterior probability."""


class Draw(NamedTuple):
    """How one request draws its way."""

    temperature: float
    seed: int
    step: int

    def hashes(self, span: OpenSpan) -> Ids:
        """[places] of all that the noise of an edge without logits depends on, but the state that it leads to."""
        positions = span.start + np.arange(len(span.fixed))
        return np.asarray(hashed(self.seed, positions, self.step))


class Chain:
    """All ways through one span. What needs no logits is worked out when it is made.

    An edge is live at a place if it lies on a way from the span's state to an end that its `room` allows.
    """

    def __init__(self, span: OpenSpan) -> None:
        self.span = span
        constraint = span.constraint
        self.num_places = len(span.fixed)
        self.viable = np.zeros((self.num_places + 1, constraint.num_states + 1), np.bool_)
        """[places + 1, states + 1], END the last: the states that lie on a way."""
        self.used = np.zeros((span.num_rows, constraint.num_labels), np.bool_)
        """[rows, labels] which live edges have there."""
        self.is_possible = span.state != constraint.dead and self._reach()
        """Whether there is any way through."""

    def allowed(self) -> Mask:
        """bool [rows, classes] which classes may stand at the targets."""
        constraint = self.span.constraint
        allowed = np.zeros((len(self.used), constraint.num_classes), np.bool_)
        for row, used in enumerate(self.used):
            classes, _, _ = self._members(np.flatnonzero(used))
            allowed[row, classes] = True
        return allowed

    def _of_labels(self, columns: Floats, *, is_best: bool) -> Floats:
        """columns [rows, classes] -> [rows, labels] what each label that a live edge has weighs.

        That is the log-sum-exp of its classes' numbers, or for `is_best` the largest.
        """
        values = np.zeros(self.used.shape)
        for numbers, used, row in zip(np.maximum(columns, NOTHING), self.used, values, strict=True):
            classes, first, owner = self._members(np.flatnonzero(used))
            members = numbers[classes]
            if len(classes):
                most = np.maximum.reduceat(members, first)
                sums = 0.0 if is_best else np.log(np.add.reduceat(np.exp(members - most[owner]), first))
                row[used] = most + sums
        return values

    def behind(self, columns: Floats, *, is_best: bool) -> Floats:
        """columns [rows, classes] -> [places + 1, states + 1] the logarithm of what all ways from there weigh together.

        For `is_best`, what the best of these ways weighs. -inf where there is none.
        """
        return self._behind(self._of_labels(columns, is_best=is_best), is_best=is_best)

    def _behind(self, values: Floats, *, is_best: bool) -> Floats:
        behind = np.where(self.viable, 0.0, -np.inf)
        for place in range(self.num_places - 1, -1, -1):
            onwards, here = behind[place + 1], behind[place]
            if (token_class := self.span.fixed[place]) != OPEN:
                states = np.flatnonzero(self.viable[place])
                here[states] = onwards[self._behind_token(states, token_class)]
                continue
            edges, first, owner = self._live(place)
            through = self._weights(place, edges, first, owner, values, is_best) + onwards[self._dst(edges)]
            most = np.maximum.reduceat(through, first)
            sums = 0.0 if is_best else np.log(np.add.reduceat(np.exp(through - most[owner]), first))
            here[self._src(edges[first])] = most + sums
        return behind

    def gains(self, columns: Floats) -> tuple[Floats, Floats]:
        """[rows, classes] the logarithm of what a token's probability is to be multiplied by, and `behind`.

        The products are posterior probabilities, but for a factor of the row. -inf for what may not stand there.
        """
        constraint, values = self.span.constraint, self._of_labels(columns, is_best=False)
        behind = self._behind(values, is_best=False)
        states, labels = constraint.num_states + 1, constraint.num_labels
        gains = np.full((len(values), constraint.num_classes), -np.inf)
        ahead = np.zeros(states)
        ahead[self.span.state] = 1.0
        for place, (token_class, row) in enumerate(zip(self.span.fixed, self.span.rows, strict=True)):
            if token_class != OPEN:
                before = np.flatnonzero(self.viable[place])
                ahead = _summed(self._behind_token(before, token_class), ahead[before], states)
                continue
            edges, first, owner = self._live(place)
            src, dst = self._src(edges), self._dst(edges)
            weights = self._weights(place, edges, first, owner, values, is_best=False)
            probable = ahead[src] * np.exp(weights + behind[place + 1, dst] - behind[place, src])
            ahead = _summed(dst, probable, states)
            if row == UNSCORED:
                continue
            used = np.flatnonzero(self.used[row])
            share = _summed(constraint.edge_label[edges], probable, labels)[used]
            members, _, owner = self._members(used)
            shares = (np.log(np.maximum(share, LEAST)) - values[row, used])[owner]
            most = np.full(constraint.num_classes, -np.inf)
            np.maximum.at(most, members, shares)
            total = _summed(members, np.exp(shares - most[members]), constraint.num_classes)
            some = total > 0
            gains[row, some] = most[some] + np.log(total[some])
        return gains, behind

    def walk(self, columns: Floats, behind: Floats, draw: Draw) -> Ids:
        """[rows] the class that the best way takes at each target, or a way that is drawn.

        columns [rows, classes] are the classes' best logits, with noise where the request draws, and `behind` what is
        behind its edges at its temperature: the largest sum is then a draw from all ways by their weights.
        """
        values, hashes = self._of_labels(columns, is_best=True), draw.hashes(self.span)
        constraint, state = self.span.constraint, self.span.state
        classes = np.zeros(len(values), np.int64)
        for place, (token_class, row) in enumerate(zip(self.span.fixed, self.span.rows, strict=True)):
            if token_class != OPEN:
                state = int(self._behind_token(np.array([state]), token_class)[0])
                continue
            edges = np.arange(constraint.edge_start[state], constraint.edge_start[state + 1])
            edges = edges[self.viable[place + 1, self._dst(edges)]]
            dst = self._dst(edges)
            sums = (draw.temperature or 1.0) * behind[place + 1, dst]
            if row != UNSCORED:
                sums += values[row, constraint.edge_label[edges]]
            elif draw.temperature:
                uniform = (continued(hashes[place], dst) + 0.5) / 2.0**32
                sums += draw.temperature * (-np.log(-np.log1p(-uniform)) - np.log(len(edges)))
            taken = edges[sums.argmax()]
            if row != UNSCORED:
                members, _, _ = self._members(constraint.edge_label[[taken]])
                classes[row] = members[np.maximum(columns[row, members], NOTHING).argmax()]
            state = int(constraint.edge_dst[taken])
        return classes

    def _reach(self) -> bool:
        constraint, viable = self.span.constraint, self.viable
        src, dst, end = constraint.edge_src, constraint.edge_dst, constraint.end
        viable[0, self.span.state] = True
        for place, token_class in enumerate(self.span.fixed):
            if token_class == OPEN:
                viable[place + 1, dst[viable[place, src]]] = True
            else:
                behind = self._behind_token(np.flatnonzero(viable[place]), token_class)
                viable[place + 1, behind[behind <= end]] = True
        viable[-1] &= self.span.ends
        for place in range(self.num_places - 1, -1, -1):
            here, onwards = viable[place], np.append(viable[place + 1], False)
            if (token_class := self.span.fixed[place]) == OPEN:
                edges = np.flatnonzero(here[src] & onwards[dst])
                here[:] = False
                here[src[edges]] = True
                if (row := self.span.rows[place]) != UNSCORED:
                    self.used[row, constraint.edge_label[edges]] = True
            else:
                states = np.flatnonzero(here)
                here[states] = onwards[self._behind_token(states, token_class)]
        return bool(viable[0, self.span.state])

    def _behind_token(self, states: Ids, token_class: int) -> Ids:
        """The states behind a token that stands there. Behind the answer, any token may stand."""
        constraint = self.span.constraint
        return np.where(states == constraint.end, states, constraint.step[states, token_class])

    def _live(self, place: int) -> tuple[Ids, Ids, Ids]:
        """The live edges of a place, the first one of each state's, and which state's each is, counted."""
        constraint = self.span.constraint
        is_live = self.viable[place, constraint.edge_src] & self.viable[place + 1, constraint.edge_dst]
        edges = np.flatnonzero(is_live)
        is_first = np.diff(constraint.edge_src[edges], prepend=-1) != 0
        return edges, np.flatnonzero(is_first), np.cumsum(is_first) - 1

    def _weights(self, place: int, edges: Ids, first: Ids, owner: Ids, values: Floats, is_best: bool) -> Floats:
        """[edges] of a place: the values of their labels; without logits, all edges of a state weigh the same."""
        if (row := self.span.rows[place]) != UNSCORED:
            return np.asarray(values[row, self.span.constraint.edge_label[edges]])
        if is_best:
            return np.zeros(len(edges))
        return np.asarray(-np.log(np.diff(first, append=len(edges)))[owner])

    def _members(self, labels: NDArray[np.integer]) -> tuple[Ids, Ids, Ids]:
        """The classes of these labels, one label's after the other's, where each label's begin, and whose each is."""
        constraint = self.span.constraint
        starts = constraint.label_start[labels]
        counts = constraint.label_start[labels + 1] - starts
        first = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(labels)), counts)
        return constraint.label_classes[np.arange(len(owner)) + (starts - first)[owner]].astype(np.int64), first, owner

    def _src(self, edges: Ids) -> NDArray[np.int32]:
        return self.span.constraint.edge_src[edges]

    def _dst(self, edges: Ids) -> NDArray[np.int32]:
        return self.span.constraint.edge_dst[edges]


def _summed(places: NDArray[np.integer], values: Floats, count: int) -> Floats:
    """[count] the sum of the values at each place."""
    return np.bincount(places, values, count).astype(np.float64, copy=False)
