"""The most probable way through the live edges of some spans, draws from all ways, and what each class gains by them.

Positions are independent given the model, and the automaton ties them together: a chain, with one pass from the right
and one from the left. For all constrained requests of a step in one pass, in float64, and in an order that depends on
each request alone. Knows live edges (`engine.scoring.reach`) and numbers of classes, but no logits.

What is said of classes stands side by side, request by request: `columns` are [rows, classes] of each, raveled.

A position that the step has no logits of says nothing: the live edges that leave a state there weigh the same, and as
much as one token together. What is decoded there later is chosen with its own logits, and with the tokens around it
known, so that the answer stays completable.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.core.noise import uniform
from engine.core.request import Floats, Ids, Mask
from engine.scoring.reach import OPEN, UNSCORED, Reach

NOTHING = -1e9
"""Logarithm of the weight of a class whose tokens the model gives none."""
LEAST = 1e-300
"""The least posterior probability."""


class Draw(NamedTuple):
    """How one request draws its way."""

    temperature: float
    seed: int
    step: int


class Chain:
    """The sums over all ways of some spans. What needs no logits is worked out when it is made."""

    def __init__(self, reach: Reach) -> None:
        assert reach.is_possible().all(), "a constraint that nothing can satisfy any more; this is a bug"
        self._reach = reach
        # Live edges, place by place, and those next to each other that leave one state: a group.
        self._place, self._at = np.nonzero(reach.live)
        self._owner, self._src, self._dst = reach.owner[self._at], reach.src[self._at], reach.dst[self._at]
        is_first = np.append(True, (np.diff(self._place) != 0) | (np.diff(self._src) != 0))[: len(self._at)]
        self._first, self._group = np.flatnonzero(is_first), np.cumsum(is_first) - 1
        places = np.arange(reach.num_places + 1)
        self._edges_of = np.searchsorted(self._place, places).tolist()
        self._groups_of = np.searchsorted(self._place[self._first], places).tolist()
        self._name_values()
        self._even = np.flatnonzero(self._value == self._num_values)
        """Live edges of positions without logits."""
        self._evenly = -np.log(np.bincount(self._group)[self._group[self._even]])

    def of_labels(self, columns: Floats, is_best: Mask) -> Floats:
        """[values] what each label that a live edge has weighs: the log-sum-exp of its classes' `columns`.

        For spans that `is_best` (bool [spans]) marks, the largest of its classes' numbers.
        """
        numbers = np.maximum(columns[self._members], NOTHING)
        most: Floats = np.maximum.reduceat(numbers, self._member_first) if len(numbers) else np.empty(0)
        sums = ~is_best[self._value_owner]
        if sums.any():
            shares = np.add.reduceat(np.exp(numbers - most[self._member_of]), self._member_first)
            most = most + np.where(sums, np.log(shares), 0.0)
        return most

    def behind(self, values: Floats, is_best: Mask) -> Floats:
        """[places + 1, states] the logarithm of what all ways from there to the end weigh together.

        For spans that `is_best` (bool [spans]) marks, what the best of these ways weighs.
        """
        reach = self._reach
        weights = self._weights(values, np.where(is_best[self._owner[self._even]], 0.0, self._evenly))
        behind = np.where(reach.viable, 0.0, -np.inf)
        sums = ~is_best[self._owner[self._first]]
        for place in range(reach.num_places - 1, -1, -1):
            onwards, here = behind[place + 1], behind[place]
            here[:] = -np.inf
            some, groups = self._slices(place)
            if some.stop > some.start:
                through = weights[some] + onwards[self._dst[some]]
                here[self._src[self._first[groups]]] = self._sums(through, some, groups, sums[groups])
            here[reach.fixed_src[place]] = onwards[reach.fixed_dst[place]]
        return behind

    def gains(self, values: Floats, behind: Floats) -> Floats:
        """Like columns: the logarithm of what a token's probability is to be multiplied by.

        The products are posterior probabilities, but for a factor of the row. -inf for what may not stand there.
        """
        posterior = np.bincount(self._value, self._posterior(values, behind), self._num_values + 1)[:-1]
        shares = (np.log(np.maximum(posterior, LEAST)) - values)[self._member_of]
        most = np.full(self.num_columns, -np.inf)
        np.maximum.at(most, self._members, shares)
        total = np.bincount(self._members, np.exp(shares - most[self._members]), self.num_columns)
        with np.errstate(divide="ignore"):
            return np.asarray(most + np.log(total))

    def walk(self, columns: Floats, behind: Floats, draws: Sequence[Draw]) -> list[Ids]:
        """For each span the class [rows] that the best way takes at its targets, or a way that is drawn.

        `columns` are the classes' best logits, with noise where a request draws, and `behind` what is behind its edges
        at its temperature: the largest sum is then a draw from all ways by their weights.
        """
        reach = self._reach
        values = self.of_labels(columns, np.ones(len(reach.spans), np.bool_))
        heat = np.array([draw.temperature or 1.0 for draw in draws])
        sums = self._weights(values, self._noise(draws))
        sums += heat[self._owner] * behind[self._place + 1, self._dst]
        best = np.flatnonzero(sums == np.maximum.reduceat(sums, self._first)[self._group])
        best = best[np.searchsorted(self._group[best], np.arange(len(self._first)))]  # the first of each group
        taken = np.empty(reach.viable.shape, np.int64)  # the live edge that follows each state
        taken[self._place[self._first], self._src[self._first]] = best
        state, ways = reach.starts.copy(), np.empty((reach.num_places, len(reach.spans)), np.int64)
        for place in range(reach.num_places):
            onwards = np.arange(len(reach.viable[place]))
            _, groups = self._slices(place)
            onwards[self._src[self._first[groups]]] = self._dst[best[groups]]
            onwards[reach.fixed_src[place]] = reach.fixed_dst[place]
            ways[place] = taken[place, state]
            state = np.where(place >= reach.firsts, onwards[state], state)
        return [self._classes(columns, number, ways[:, number]) for number in range(len(reach.spans))]

    def _classes(self, columns: Floats, number: int, way: Ids) -> Ids:
        """[rows] the best class of each label on a span's way [places] of live edges, at its targets."""
        span = self._reach.spans[number]
        values = self._value[way[self._reach.firsts[number] :][span.rows != UNSCORED]]
        starts, counts = self._member_first[values], self._member_counts[values]
        first = np.cumsum(counts) - counts
        row = np.repeat(np.arange(len(values)), counts)
        members = self._members[np.arange(len(row)) + np.repeat(starts - first, counts)]
        numbers = columns[members]
        best = np.flatnonzero(numbers == np.maximum.reduceat(numbers, first)[row])
        best = best[np.searchsorted(row[best], np.arange(len(values)))]
        return np.asarray((members[best] - self.column_starts[number]) % span.constraint.num_classes)

    def _name_values(self) -> None:
        """Numbers the labels that live edges have at scored positions, and finds the columns of their classes."""
        spans = self._reach.spans
        automata = [span.constraint for span in spans]
        rows, widths = np.array([span.num_rows for span in spans]), np.array([one.num_classes for one in automata])
        labels = np.array([len(one.label_start) - 1 for one in automata])
        self.column_starts = np.cumsum(np.append(0, rows * widths))
        """[spans + 1] where each one's columns begin."""
        self.num_columns = int(self.column_starts[-1])
        starts = np.cumsum(np.append(0, rows * labels))
        row = self._rows()[self._place, self._owner]
        named = starts[self._owner] + row * labels[self._owner] + self._reach.label[self._at]
        is_used = np.zeros(int(starts[-1]) + 1, np.bool_)
        is_used[np.where(row == UNSCORED, starts[-1], named)] = True
        is_used[-1] = False
        used, number = np.flatnonzero(is_used), np.cumsum(is_used) - 1
        self._num_values = len(used)
        self._value = np.where(row == UNSCORED, self._num_values, number[named])
        """[live] the value of each edge's label; `_num_values` where there are no logits."""
        self._value_owner = np.searchsorted(starts, used, side="right") - 1
        """[values] the span of each."""
        row, label = np.divmod(used - starts[self._value_owner], labels[self._value_owner])
        ends = np.concatenate([one.label_start[1:] for one in automata])
        begins = np.concatenate([one.label_start[:-1] for one in automata])
        label += np.cumsum(np.append(0, labels))[self._value_owner]
        self._member_counts = (ends - begins)[label]
        self._member_first = np.cumsum(self._member_counts) - self._member_counts
        """[values] where each one's classes begin among the members."""
        self._member_of = np.repeat(np.arange(self._num_values), self._member_counts)
        offsets = np.cumsum([0, *(len(one.label_classes) for one in automata[:-1])])
        begin = (begins[label] + offsets[self._value_owner] - self._member_first)[self._member_of]
        classes = np.concatenate([one.label_classes for one in automata])[np.arange(len(self._member_of)) + begin]
        base = self.column_starts[self._value_owner] + row * widths[self._value_owner]
        self._members = base[self._member_of] + classes
        """[members] the column of each class of each value."""

    def _rows(self) -> Ids:
        """[places, spans] which of the span's targets stands there, or `UNSCORED`."""
        rows = np.full((self._reach.num_places, len(self._reach.spans)), UNSCORED)
        for number, span in enumerate(self._reach.spans):
            rows[self._reach.firsts[number] :, number] = np.where(span.fixed == OPEN, span.rows, UNSCORED)
        return rows

    def _slices(self, place: int) -> tuple[slice, slice]:
        """The live edges of a place, and their groups."""
        return (
            slice(self._edges_of[place], self._edges_of[place + 1]),
            slice(self._groups_of[place], self._groups_of[place + 1]),
        )

    def _weights(self, values: Floats, even: Floats) -> Floats:
        """[live] of each edge: the value of its label, or what `even` has of edges without logits."""
        weights: Floats = np.concatenate((values, np.zeros(1)))[self._value]
        weights[self._even] = even
        return weights

    def _sums(self, through: Floats, some: slice, groups: slice, is_sum: Mask) -> Floats:
        """[groups] log-sum-exp of what goes through each group's edges; where not `is_sum`, the largest."""
        first = self._first[groups] - some.start
        most = np.maximum.reduceat(through, first)
        if not is_sum.any():
            return np.asarray(most)
        total = np.log(np.add.reduceat(np.exp(through - most[self._group[some] - groups.start]), first))
        return np.asarray(most + np.where(is_sum, total, 0.0))

    def _posterior(self, values: Floats, behind: Floats) -> Floats:
        """[live] with which probability the way goes through each edge."""
        reach = self._reach
        weights = self._weights(values, self._evenly)
        onwards = np.exp(weights + behind[self._place + 1, self._dst] - behind[self._place, self._src])
        states = behind.shape[1]
        ahead: Floats = np.zeros(states)
        for place in range(reach.num_places):
            ahead[reach.starts[reach.firsts == place]] = 1.0
            some, _ = self._slices(place)
            onwards[some] *= ahead[self._src[some]]
            fixed = np.bincount(reach.fixed_dst[place], ahead[reach.fixed_src[place]], states)
            ahead = np.asarray(np.bincount(self._dst[some], onwards[some], states) + fixed, np.float64)
        return np.asarray(onwards)

    def _noise(self, draws: Sequence[Draw]) -> Floats:
        """[even] what is added to edges of positions without logits: Gumbel noise, hashed as that of a token."""
        owner, reach = self._owner[self._even], self._reach
        noise = np.zeros(len(owner))
        for number in np.unique(owner).tolist():
            draw, own = draws[number], np.flatnonzero(owner == number)
            if draw.temperature:
                position = reach.spans[number].start + self._place[self._even[own]] - reach.firsts[number]
                state = self._dst[self._even[own]] - reach.offsets[number]
                gumbel = -np.log(-np.log1p(-uniform(draw.seed, position, draw.step, state)))
                noise[own] = draw.temperature * (gumbel + self._evenly[own])
        return noise
