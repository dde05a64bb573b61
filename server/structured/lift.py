"""Lifts an automaton over bytes to one over token ids. Knows spellings, but not what the automaton stands for.

Tokens that lead from every state to the same state are one class: a class is a map of states to states. These maps are
found along the tree of spellings, each once, so that a large vocabulary costs a few look-ups a level.
"""

from collections.abc import Collection
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from server.structured.automaton import NEVER, Automaton, distances, reachable
from server.structured.budget import Budget
from server.structured.refusals import NoValue
from server.structured.vocabulary import Vocabulary

Index = NDArray[np.int64]
Maps = NDArray[np.int32]
"""[states + 1, maps] the state that each map leads to from each state; the last state is dead."""


class Lifted(TypedDict):
    """The fields of the engine's `Constraint`, which is not imported here; `Constraint(**lifted)` makes it."""

    classes: Index
    step: NDArray[np.int32]
    edge_src: NDArray[np.int32]
    edge_dst: NDArray[np.int32]
    edge_label: NDArray[np.int32]
    label_start: NDArray[np.int32]
    label_classes: NDArray[np.int32]
    distance: NDArray[np.int32]
    accepts: NDArray[np.bool_]


def lift(automaton: Automaton, vocabulary: Vocabulary, stop_ids: Collection[int], budget: Budget) -> Lifted:
    """The automaton over tokens; those of `stop_ids` end the answer.

    Raises NoValue if no text of it can be spelled with this vocabulary, or TooLarge.
    """
    maps, classes = _maps_of_tokens(automaton, vocabulary, list(stop_ids), budget)
    states = reachable(maps, 0, automaton.dead)
    step, merged = _restricted(maps, states)
    distance = _distances(step, automaton.accepts[states])
    is_live = distance < NEVER
    if not is_live[0]:
        raise NoValue("the model's vocabulary cannot spell any text of it")
    if not is_live.all():
        step, again = _restricted(step, np.flatnonzero(is_live))
        merged, states, distance = again[merged], states[is_live], distance[is_live]
    accepts = automaton.accepts[states]
    table = _with_end(step, accepts)
    classes = merged[classes]
    classes[list(stop_ids)] = table.shape[1] - 1
    src, dst, label, label_start, label_classes = _edges(table)
    return Lifted(
        classes=classes,
        step=table,
        edge_src=src,
        edge_dst=dst,
        edge_label=label,
        label_start=label_start,
        label_classes=label_classes,
        distance=distance.astype(np.int32),
        accepts=accepts,
    )


def _maps_of_tokens(
    automaton: Automaton, vocabulary: Vocabulary, barred: list[int], budget: Budget
) -> tuple[Maps, Index]:
    """The maps that tokens make, the first of which leads nowhere, and the map of each token.

    Those of `barred` lead nowhere.
    """
    found = _Maps(automaton, budget)
    of_token = np.full(vocabulary.size, found.nowhere)
    above = np.array([found.identity])
    for level in vocabulary.levels:
        above = found.following(above[level.parents], automaton.letters[level.data])
        of_token[level.ids] = above[level.ends]
    of_token[barred] = found.nowhere
    used, classes = np.unique(np.append(found.nowhere, of_token), return_inverse=True)
    return found.stacked(used), classes.reshape(-1)[1:]


class _Maps:
    """Maps of states to states, numbered as they are found."""

    def __init__(self, automaton: Automaton, budget: Budget) -> None:
        self._budget = budget
        self._dead = automaton.dead
        dtype = np.min_scalar_type(-1 - automaton.num_states)
        self._of_letter = np.ascontiguousarray(automaton.table.T.astype(dtype))
        """[letters, states + 1] the maps of single letters."""
        self._numbers: dict[bytes, int] = {}
        self._maps: list[NDArray[np.signedinteger]] = []
        self._following = np.full((64, len(self._of_letter)), -1)
        """[maps, letters] the map behind each letter, as far as it was asked for."""
        states = np.arange(automaton.num_states + 1, dtype=dtype)
        self.nowhere = self._numbered(np.full_like(states, automaton.dead))
        self.identity = self._numbered(states)
        self._following[self.nowhere] = self.nowhere

    def following(self, above: Index, letters: NDArray[np.uint8]) -> Index:
        """[nodes] the maps behind a letter each."""
        is_new = self._following[above, letters] < 0
        width = len(self._of_letter)
        for key in np.unique(above[is_new] * width + letters[is_new]).tolist():
            before, letter = divmod(key, width)
            behind = self._numbered(self._of_letter[letter][self._maps[before]])
            self._following[before, letter] = behind
        return self._following[above, letters]

    def stacked(self, numbers: Index) -> Maps:
        """[states + 1, maps] those with these numbers."""
        return np.stack([self._maps[number] for number in numbers.tolist()], axis=1).astype(np.int32)

    def _numbered(self, new: NDArray[np.signedinteger]) -> int:
        key = new.tobytes()
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._maps)
            self._maps.append(new)
            self._budget.check_entries(len(self._maps) * len(new))
            if number % 256 == 0:
                self._budget.check_time()
            if number == len(self._following):
                self._following = np.concatenate([self._following, np.full_like(self._following, -1)])
        return number


def _restricted(maps: Maps, states: Index) -> tuple[Maps, Index]:
    """The maps on some of the states alone, those that are equal there as one, and the new number of each.

    The first one, which leads nowhere, stays the first.
    """
    dead = len(maps) - 1
    renamed = np.full(len(maps), len(states), np.int32)
    renamed[states] = np.arange(len(states))
    columns = np.ascontiguousarray(renamed[maps[np.append(states, dead)]].T)
    numbers: dict[bytes, int] = {}
    merged = np.array([numbers.setdefault(column.tobytes(), len(numbers)) for column in columns])
    first = np.unique(merged, return_index=True)[1]
    return np.ascontiguousarray(columns[first].T), merged


def _distances(step: Maps, accepts: NDArray[np.bool_]) -> Index:
    """[states] the least number of tokens to an accepted end, or `NEVER`."""
    count = len(accepts)
    src, fits = np.nonzero(step[:count] < count)
    pairs = np.unique(src * count + step[src, fits])
    return distances(pairs // count, pairs % count, accepts)


def _with_end(step: Maps, accepts: NDArray[np.bool_]) -> NDArray[np.int32]:
    """[states + 2, classes + 1] the same with END before the dead state, and the class that leads there."""
    end = len(accepts)
    dead = end + 1
    table = np.full((end + 2, step.shape[1] + 1), dead, np.int32)
    table[:end, :-1] = np.where(step[:end] < end, step[:end], dead)
    table[:end, -1] = np.where(accepts, end, dead)
    table[end, -1] = end
    return table


def _edges(table: NDArray[np.int32]) -> tuple[NDArray[np.int32], ...]:
    """The edges' states and labels, and the labels' classes, as `Lifted` has them."""
    dead = len(table) - 1
    src, fits = np.nonzero(table[:dead] < dead)
    dst = table[src, fits]
    order = np.lexsort((fits, dst, src))
    src, dst, fits = src[order], dst[order], fits[order].astype(np.int32)
    starts = np.flatnonzero((np.diff(src, prepend=-1) != 0) | (np.diff(dst, prepend=-1) != 0))
    numbers: dict[bytes, int] = {}
    ends = [*starts[1:].tolist(), len(fits)]
    sets = [fits[start:end].tobytes() for start, end in zip(starts.tolist(), ends, strict=True)]
    label = [numbers.setdefault(one, len(numbers)) for one in sets]
    contents = [np.frombuffer(one, np.int32) for one in numbers]
    label_start = np.cumsum([0, *map(len, contents)])
    found = (src[starts], dst[starts], np.array(label), label_start, np.concatenate(contents))
    return tuple(part.astype(np.int32) for part in found)
