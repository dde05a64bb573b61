"""The most probable way through the live edges of some spans, draws from all ways, and what each class gains by them.

Positions are independent given the model, and the automaton ties them together: a chain, with one pass from the right
and one from the left. Sums are logarithms in float64, for all constrained requests of a step in one pass, and in an
order that depends on each request alone. Knows live edges (`engine.scoring.reach`) and values of classes, no logits.

A position that the step has no logits of says nothing: all live edges that leave a state there weigh the same, and
together as much as one token. What stands there later keeps the answer completable all the same, since it is chosen
with its own logits and with the tokens around it known.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.core.constraint import Constraint
from engine.core.noise import uniform
from engine.core.request import Floats, Ids, Mask
from engine.scoring.reach import OPEN, UNSCORED, Reach

LEAST = -600.0
"""Logarithm of the least that an edge weighs beside the best one at its position, where classes' gains are summed."""
NOTHING = -1e9
"""Logarithm of the weight of a class whose tokens the model gives none."""


class Draw(NamedTuple):
    """How one request draws its way."""

    temperature: float
    seed: int
    step: int


class Edges(NamedTuple):
    """Live edges in one order, place by place, and those next to each other that share a state."""

    at: Ids
    """[live] which edge."""
    place: Ids
    """[live]"""
    first: Ids
    """[groups] index of each group's first live edge."""
    group: Ids
    """[live] the group of each."""
    state: Ids
    """[groups] the state that its edges share."""
    edges_of: Ids
    """[places + 1] where each place's live edges begin."""
    groups_of: Ids
    """[places + 1] where each place's groups begin."""


class Chain:
    """The sums over some spans' ways. `values` are of labels, span by span: [rows, labels], raveled (`by_label`)."""

    def __init__(self, reach: Reach) -> None:
        assert reach.is_possible().all(), "a constraint that nothing can satisfy any more; this is a bug"
        self._reach = reach
        self._forth = _ordered(reach.live, np.arange(len(reach.src)), reach.src)
        self._back = _ordered(reach.live[:, reach.by_dst], reach.by_dst, reach.dst)
        self._bases = np.cumsum([0, *(span.num_rows * _num_labels(span.constraint) for span in reach.spans)])
        self._forth_value, self._back_value = self._value_of(self._forth), self._value_of(self._back)
        fan = np.bincount(self._forth.group)
        self._evenly = -np.log(fan)[self._forth.group]
        back_order = np.lexsort((self._forth.at, self._forth.place))
        wanted = self._back.place * len(reach.src) + self._back.at
        known = (self._forth.place * len(reach.src) + self._forth.at)[back_order]
        self._back_evenly = self._evenly[back_order[np.searchsorted(known, wanted)]]

    def behind(self, values: Floats, is_best: Mask) -> Floats:
        """[places + 1, states] the logarithm of what all ways from there to the end weigh together.

        For spans that `is_best` (bool [spans]) marks, what the best of these ways weighs.
        """
        reach, edges = self._reach, self._forth
        weights = np.where(self._is_even(is_best), 0.0, self._weights(values, edges, self._forth_value, self._evenly))
        behind = np.where(reach.viable, 0.0, -np.inf)
        sums = ~is_best[reach.owner[edges.at[edges.first]]]
        for place in range(reach.num_places - 1, -1, -1):
            behind[place] = -np.inf
            some, groups = _at(edges.edges_of, place), _at(edges.groups_of, place)
            if some.stop > some.start:
                through = weights[some] + behind[place + 1][reach.dst[edges.at[some]]]
                behind[place, edges.state[groups]] = _sum(through, edges, some, groups, sums[groups])
            behind[place, reach.fixed_src[place]] = behind[place + 1][reach.fixed_dst[place]]
        return behind

    def ahead(self, values: Floats) -> Floats:
        """[places + 1, states] the logarithm of what all ways from the span's start to there weigh together."""
        reach, edges = self._reach, self._back
        weights = self._weights(values, edges, self._back_value, self._back_evenly)
        ahead = np.full(reach.viable.shape, -np.inf)
        ahead[reach.firsts, reach.starts] = 0.0
        for place in range(reach.num_places):
            some, groups = _at(edges.edges_of, place), _at(edges.groups_of, place)
            if some.stop > some.start:
                through = weights[some] + ahead[place][reach.src[edges.at[some]]]
                ahead[place + 1, edges.state[groups]] = _sum(through, edges, some, groups, None)
            np.logaddexp.at(ahead[place + 1], reach.fixed_dst[place], ahead[place][reach.fixed_src[place]])
        return ahead

    def gains(self, ahead: Floats, behind: Floats) -> list[Floats]:
        """For each span [rows, classes]: the logarithm of what a token's probability is to be multiplied by.

        The products are its posterior probabilities, but for a factor of the row. -inf for what may not stand there.
        """
        reach, edges = self._reach, self._forth
        scored = self._forth_value >= 0
        at, place, value = edges.at[scored], edges.place[scored], self._forth_value[scored]
        through = ahead[place, reach.src[at]] + behind[place + 1, reach.dst[at]]
        row = place * len(reach.spans) + reach.owner[at]
        first = np.flatnonzero(np.diff(row, prepend=-1))
        most = np.repeat(np.maximum.reduceat(through, first), np.diff(np.append(first, len(row)))) if len(row) else 0.0
        weights = np.exp(np.maximum(through - most, LEAST))
        shares: Floats = np.bincount(value, weights, minlength=int(self._bases[-1])).astype(np.float64)
        return [
            _of_classes(span.constraint, shares[base:end].reshape(span.num_rows, -1))
            for span, base, end in zip(reach.spans, self._bases[:-1], self._bases[1:], strict=True)
        ]

    def walk(self, values: Floats, behind: Floats, draws: Sequence[Draw]) -> list[Ids]:
        """For each span [rows] the label of the edge that the best way takes there, or a way that is drawn.

        `values` are the labels' best logits, with noise where a request draws, and `behind` what is behind its edges at
        its temperature: the largest sum is then a draw from all ways by their weights.
        """
        reach, edges = self._reach, self._forth
        heat = np.array([draw.temperature or 1.0 for draw in draws])[reach.owner[edges.at]]
        sums = self._weights(values, edges, self._forth_value, self._noise(draws))
        sums += heat * behind[edges.place + 1, reach.dst[edges.at]]
        best = np.flatnonzero(sums == np.maximum.reduceat(sums, edges.first)[edges.group])
        best = best[np.searchsorted(edges.group[best], np.arange(len(edges.first)))]  # the first of each group
        onwards = np.zeros(reach.viable.shape, np.int64)  # the state, and the edge to it, that follow each state
        taken = np.full(reach.viable.shape, -1)
        onwards[edges.place[edges.first], edges.state] = reach.dst[edges.at[best]]
        taken[edges.place[edges.first], edges.state] = edges.at[best]
        for place in range(reach.num_places):
            onwards[place, reach.fixed_src[place]] = reach.fixed_dst[place]
        state, ways = reach.starts.copy(), np.empty((reach.num_places, len(reach.spans)), np.int64)
        for place in range(reach.num_places):
            ways[place] = taken[place, state]
            state = np.where(place >= reach.firsts, onwards[place, state], state)
        return [self._labels(number, ways[:, number]) for number in range(len(reach.spans))]

    def _labels(self, number: int, way: Ids) -> Ids:
        """[rows] of the edges [places] on a span's way."""
        span = self._reach.spans[number]
        edges = way[self._reach.firsts[number] :][span.rows != UNSCORED]
        return np.asarray(self._reach.label[edges], np.int64)

    def _value_of(self, edges: Edges) -> Ids:
        """[live] the index of each edge's value, or `UNSCORED`."""
        reach = self._reach
        rows = np.full((reach.num_places, len(reach.spans)), UNSCORED)
        for number, span in enumerate(reach.spans):
            rows[reach.firsts[number] :, number] = np.where(span.fixed == OPEN, span.rows, UNSCORED)
        owner = reach.owner[edges.at]
        row = rows[edges.place, owner]
        widths = np.array([_num_labels(span.constraint) for span in reach.spans])
        value = self._bases[owner] + row * widths[owner] + reach.label[edges.at]
        return np.asarray(np.where(row == UNSCORED, UNSCORED, value))

    def _weights(self, values: Floats, edges: Edges, value_of: Ids, unscored: Floats) -> Floats:
        """[live] of each edge: the value of its label, or the one of `unscored` [live]."""
        return np.where(value_of == UNSCORED, unscored, values[value_of] if len(values) else 0.0)

    def _is_even(self, is_best: Mask) -> Mask:
        """bool [live] edges of positions without logits where only the best way counts: all weigh nothing there."""
        return np.asarray((self._forth_value == UNSCORED) & is_best[self._reach.owner[self._forth.at]])

    def _noise(self, draws: Sequence[Draw]) -> Floats:
        """[live] what is added to edges of positions without logits: Gumbel noise, hashed as that of a token."""
        reach, edges = self._reach, self._forth
        noise = np.zeros(len(edges.at))
        for number, (draw, span) in enumerate(zip(draws, reach.spans, strict=True)):
            own = np.flatnonzero((reach.owner[edges.at] == number) & (self._forth_value == UNSCORED))
            if draw.temperature and len(own):
                position = span.start + edges.place[own] - reach.firsts[number]
                state = reach.dst[edges.at[own]] - reach.offsets[number]
                gumbel = -np.log(-np.log1p(-uniform(draw.seed, position, draw.step, state)))
                noise[own] = draw.temperature * (gumbel + self._evenly[own])
        return noise


def by_label(constraint: Constraint, values: Floats, is_sum: bool) -> Floats:
    """[rows, labels] of values [rows, classes]: the largest of each label's classes, or their log-sum-exp."""
    finite = np.maximum(values[:, constraint.label_classes], NOTHING)
    starts = constraint.label_start[:-1]
    most = np.maximum.reduceat(finite, starts, axis=1)
    if not is_sum:
        return np.asarray(most)
    shares = np.exp(finite - np.repeat(most, np.diff(constraint.label_start), axis=1))
    return np.asarray(most + np.log(np.add.reduceat(shares, starts, axis=1)))


def best_class(constraint: Constraint, values: Floats, labels: Ids) -> Ids:
    """[rows] the class of the largest of the `values` [rows, classes] among those of each row's label [rows]."""
    starts = constraint.label_start[labels]
    counts = constraint.label_start[labels + 1] - starts
    first = np.cumsum(counts) - counts
    row = np.repeat(np.arange(len(labels)), counts)
    classes = constraint.label_classes[np.arange(len(row)) - np.repeat(first - starts, counts)]
    found = values[row, classes]
    best = np.flatnonzero(found == np.maximum.reduceat(found, first)[row])
    return np.asarray(classes[best[np.searchsorted(row[best], np.arange(len(labels)))]], np.int64)


def _num_labels(constraint: Constraint) -> int:
    return len(constraint.label_start) - 1


def _ordered(live: Mask, edges: Ids, states: Ids) -> Edges:
    """The live ones (bool [places, edges]) of these edges, which are ascending by their state in `states`."""
    place, index = np.nonzero(live)
    at = edges[index]
    state = states[at]
    is_first = np.append(True, (np.diff(place) != 0) | (np.diff(state) != 0))[: len(at)]
    first = np.flatnonzero(is_first)
    places = np.arange(len(live) + 1)
    return Edges(
        at=at,
        place=place,
        first=first,
        group=np.cumsum(is_first) - 1,
        state=state[first],
        edges_of=np.searchsorted(place, places),
        groups_of=np.searchsorted(place[first], places),
    )


def _at(starts: Ids, place: int) -> slice:
    return slice(int(starts[place]), int(starts[place + 1]))


def _sum(values: Floats, edges: Edges, some: slice, groups: slice, is_sum: Mask | None) -> Floats:
    """[groups] log-sum-exp of the values of each group's edges; where not `is_sum`, the largest."""
    first = edges.first[groups] - some.start
    most = np.maximum.reduceat(values, first)
    if is_sum is not None and not is_sum.any():
        return np.asarray(most)
    total = np.log(np.add.reduceat(np.exp(values - most[edges.group[some] - groups.start]), first))
    return np.asarray(most + (total if is_sum is None else np.where(is_sum, total, 0.0)))


def _of_classes(constraint: Constraint, shares: Floats) -> Floats:
    """[rows, classes] log of the sums over the labels that hold each class, of shares [rows, labels]."""
    order = np.argsort(constraint.label_classes, kind="stable")
    classes = constraint.label_classes[order]
    label = np.repeat(np.arange(_num_labels(constraint)), np.diff(constraint.label_start))[order]
    first = np.flatnonzero(np.diff(classes, prepend=-1))
    gains = np.full((len(shares), constraint.num_classes), -np.inf)
    with np.errstate(divide="ignore"):
        gains[:, classes[first]] = np.log(np.add.reduceat(shares[:, label], first, axis=1))
    return gains
