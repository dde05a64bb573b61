"""Deterministic automata over bytes: made of nondeterministic ones, merged, intersected. Knows no syntax and no tokens.

Bytes that no edge tells apart are one letter, so that tables are narrow.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.structured.budget import Budget
from server.structured.nfa import Nfa
from server.structured.refusals import NoValue

NEVER = 2**30
"""The distance of a state from which no accepted end can be reached."""
MAX_CELLS = 50_000_000
"""Cells of tables that are read to merge equal states. A larger automaton stays as it is: correct, but not minimal."""
Table = NDArray[np.int32]
Row = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, eq=False)
class Automaton:
    """States 0 to `num_states` - 1, of which 0 is the start; the state `num_states` is dead: no way leads on."""

    table: Table
    """[states + 1, letters] the state that each letter leads to."""
    letters: NDArray[np.uint8]
    """[256] the letter of each byte."""
    accepts: NDArray[np.bool_]
    """[states + 1]"""

    @property
    def num_states(self) -> int:
        return len(self.table) - 1

    @property
    def dead(self) -> int:
        return len(self.table) - 1

    def after(self, text: bytes, state: int = 0) -> int:
        """The state that the text leads to."""
        for byte in text:
            state = int(self.table[state, self.letters[byte]])
        return state

    def matches(self, text: str) -> bool:
        """Whether the whole text is accepted."""
        return bool(self.accepts[self.after(text.encode("utf-8", "surrogatepass"))])


def determinised(nfa: Nfa, start: int, end: int) -> Automaton:
    """The minimal automaton of what leads from `start` to `end`. Raises NoValue if nothing does, or TooLarge."""
    letters, edges = _lettered(nfa)
    subsets = _Subsets(nfa, edges, start, end)
    rows = [subsets.row(nodes) for nodes in subsets.all()]
    count = len(rows)
    table = np.full((count + 1, int(letters[-1]) + 1), count, np.int32)
    for state, row in enumerate(rows):
        for low, high, target in row:
            table[state, low : high + 1] = target
    accepts = np.array([*subsets.accepts, False])
    return minimal(table, letters, accepts, nfa.budget)


def embed(nfa: Nfa, start: int, automaton: Automaton) -> int:
    """Writes the automaton into `nfa` behind `start`."""
    nodes = [nfa.node() for _ in range(automaton.num_states)]
    end = nfa.node()
    nfa.link(start, nodes[0])
    by_byte = automaton.table[:, automaton.letters]
    for state, node in enumerate(nodes):
        row = by_byte[state]
        cuts = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), 256]
        for low, high in pairwise(cuts):
            if row[low] != automaton.dead:
                nfa.edge(node, low, high - 1, nodes[row[low]])
        if automaton.accepts[state]:
            nfa.link(node, end)
    return end


def intersection(a: Automaton, b: Automaton, budget: Budget) -> Automaton:
    """What both accept. Raises NoValue if there is nothing."""
    return _product(a, b, budget, is_difference=False)


def difference(a: Automaton, b: Automaton, budget: Budget) -> Automaton:
    """What `a` accepts and `b` does not. Raises NoValue if there is nothing."""
    return _product(a, b, budget, is_difference=True)


def distances(src: NDArray[np.int64], dst: NDArray[np.int64], accepts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[states] the least number of edges from each state to an accepting one, or `NEVER`."""
    order = np.argsort(dst, kind="stable")
    sources = src[order]
    starts = np.searchsorted(dst[order], np.arange(len(accepts) + 1))
    distance = np.where(accepts, 0, NEVER)
    frontier, steps = np.flatnonzero(accepts), 0
    while len(frontier):
        steps += 1
        counts = starts[frontier + 1] - starts[frontier]
        before = np.cumsum(counts) - counts
        found = np.unique(sources[np.repeat(starts[frontier] - before, counts) + np.arange(counts.sum())])
        frontier = found[distance[found] == NEVER]
        distance[frontier] = steps
    return distance


def minimal(table: Table, letters: NDArray[np.uint8], accepts: NDArray[np.bool_], budget: Budget) -> Automaton:
    """The automaton of this table [states + 1, letters], whose last state is dead, with equal states merged.

    States that no way leads to, or from which none leads to acceptance, are left out. Raises NoValue or TooLarge.
    """
    count, width = table.shape
    dead = count - 1
    distance = distances(np.repeat(np.arange(count), width), table.ravel().astype(np.int64), accepts)
    is_live = distance < NEVER
    if not is_live[0]:
        raise NoValue("no text at all")
    table = np.where(is_live[:, None] & is_live[table], table, dead)
    block = _equal(table, distance, budget)
    of_block = np.unique(block, return_index=True)[1]
    merged = block[table[of_block]]
    reached = reachable(merged, int(block[0]), int(block[dead]))
    budget.check_states(len(reached), is_minimal=True)
    renamed = np.full(len(of_block), len(reached), np.int32)
    renamed[reached] = np.arange(len(reached))
    states = np.append(reached, block[dead])
    return Automaton(renamed[merged[states]], letters, accepts[of_block][states])


def reachable(table: NDArray[np.integer[Any]], start: int, dead: int) -> NDArray[np.int64]:
    """The states that `start` leads to in a table [states, letters], itself first, the dead one left out."""
    is_seen = np.zeros(len(table), bool)
    is_seen[[start, dead]] = True
    levels = [np.array([start])]
    while len(levels[-1]):
        found = np.unique(table[levels[-1]])
        fresh = found[~is_seen[found]]
        is_seen[fresh] = True
        levels.append(fresh)
    return np.concatenate(levels)


def _equal(table: Table, distance: NDArray[np.int64], budget: Budget) -> NDArray[np.int64]:
    """[states] numbers that are equal where states accept the same (Moore's refinement).

    Begins with the distances to acceptance, which tell counting states apart at once. Rows are compared by hashes.
    """
    count, width = table.shape
    block = np.unique(distance, return_inverse=True)[1].reshape(-1)
    generator = np.random.default_rng(0)
    weights = generator.integers(1, 2**63, size=width + 1, dtype=np.uint64) | np.uint64(1)
    codes = np.asarray(generator.integers(1, 2**63, size=count, dtype=np.uint64))
    for _ in range(max(MAX_CELLS // table.size, 8)):
        budget.check_time()
        code = codes[block]
        keys = (code[table] * weights[1:]).sum(axis=1, dtype=np.uint64) + code * weights[0]
        finer = np.unique(keys, return_inverse=True)[1].reshape(-1)
        if finer.max() == block.max():
            return finer
        block = finer
    return np.unique(np.where(distance < NEVER, np.arange(count), count - 1), return_inverse=True)[1].reshape(-1)


def _lettered(nfa: Nfa) -> tuple[NDArray[np.uint8], list[list[tuple[int, int, int]]]]:
    """The letter of each byte, and the edges of each node under ranges of letters."""
    is_cut = np.zeros(257, bool)
    for edges in nfa.edges:
        for low, high, _ in edges:
            is_cut[low] = is_cut[high + 1] = True
    is_cut[0] = False
    letters = np.cumsum(is_cut[:256]).astype(np.uint8)
    letter = letters.tolist()
    return letters, [[(letter[low], letter[high], target) for low, high, target in edges] for edges in nfa.edges]


class _Subsets:
    """Sets of nodes that some text leads to, numbered as they are found."""

    def __init__(self, nfa: Nfa, edges: list[list[tuple[int, int, int]]], start: int, end: int) -> None:
        self._nfa = nfa
        self._edges = edges
        self._end = end
        self._states: dict[frozenset[int], int] = {}
        self._after: dict[frozenset[int], int] = {}
        """States by the targets of edges, before links are followed."""
        self._waiting: deque[frozenset[int]] = deque()
        self.accepts: list[bool] = []
        self._state(frozenset([start]))

    def all(self) -> Iterator[frozenset[int]]:
        """Each set once; asking for its row may find further ones."""
        while self._waiting:
            yield self._waiting.popleft()

    def row(self, nodes: frozenset[int]) -> Row:
        """(first letter, last letter, state) for the ranges of letters that lead on."""
        edges = sorted(edge for node in nodes for edge in self._edges[node])
        if all(before[1] < behind[0] for before, behind in pairwise(edges)):
            return tuple((low, high, self._state(frozenset((target,)))) for low, high, target in edges)
        cuts = sorted({cut for low, high, _ in edges for cut in (low, high + 1)})
        row = []
        for low, behind in pairwise(cuts):
            targets = frozenset(target for first, last, target in edges if first <= low <= last)
            if targets:
                row.append((low, behind - 1, self._state(targets)))
        return tuple(row)

    def _state(self, targets: frozenset[int]) -> int:
        known = self._after.get(targets)
        if known is None:
            self._nfa.budget.check_time()
            known = self._after[targets] = self._numbered(self._closure(targets))
        return known

    def _numbered(self, nodes: frozenset[int]) -> int:
        known = self._states.get(nodes)
        if known is None:
            known = self._states[nodes] = len(self._states)
            self.accepts.append(self._end in nodes)
            self._waiting.append(nodes)
            self._nfa.budget.check_states(known, is_minimal=False)
        return known

    def _closure(self, nodes: frozenset[int]) -> frozenset[int]:
        """The nodes that links lead to, without those that only link on: these tell no sets apart."""
        seen, waiting = set(nodes), list(nodes)
        while waiting:
            for target in self._nfa.links[waiting.pop()]:
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return frozenset(node for node in seen if self._edges[node] or node == self._end)


def _product(a: Automaton, b: Automaton, budget: Budget, *, is_difference: bool) -> Automaton:
    """Pairs of states, as `first * (states of b + 1) + second`, found level by level."""
    width = len(b.table)
    pairs, of_byte = np.unique(a.letters.astype(np.int64) * 256 + b.letters, return_inverse=True)
    seen = frontier = np.zeros(1, np.int64)
    order, rows = [], []
    while len(frontier):
        budget.check_time()
        budget.check_states(len(seen), is_minimal=False)
        first = a.table[frontier // width][:, pairs // 256].astype(np.int64)
        second = b.table[frontier % width][:, pairs % 256]
        is_dead = (first == a.dead) | ((second == b.dead) & (not is_difference))
        following = np.where(is_dead, -1, first * width + second)
        order.append(frontier)
        rows.append(following)
        frontier = np.setdiff1d(following[following >= 0], seen)
        seen = np.union1d(seen, frontier)
    codes, following = np.concatenate(order), np.concatenate(rows)
    ranks = np.argsort(codes)
    place = ranks[np.searchsorted(codes[ranks], np.maximum(following, 0))]
    table = np.where(following < 0, len(codes), place)
    table = np.vstack([table, np.full((1, len(pairs)), len(codes))]).astype(np.int32)
    is_accepted = b.accepts[codes % width] != is_difference
    accepts = np.append(a.accepts[codes // width] & is_accepted, False)
    return minimal(table, of_byte.reshape(-1).astype(np.uint8), accepts, budget)
