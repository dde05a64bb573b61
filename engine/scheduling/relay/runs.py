"""Runs of equal tokens: where a prompt repeats what stands in other texts. Arrays of token ids, and nothing else.

A run has `LEAST` tokens or more. It is found by the hash of its first `LEAST` ones, and then compared token by token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.core.arrays import Ids

LEAST = 16
"""Tokens of the shortest run: shorter ones are the words that all texts have in common."""

MOST_RUNS = 64
"""Runs that are looked for: each costs time for every text, on the thread that steps."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Match(NamedTuple):
    """Tokens of the prompt from `start` on that the text with this number has from `text_start` on."""

    text: int
    text_start: int
    start: int
    length: int


class Windows:
    """A text whose windows of `LEAST` tokens can be looked up."""

    def __init__(self, ids: Ids) -> None:
        """ids [tokens]; a negative one is no token, and equals none."""
        self.ids = ids
        hashes = hashes_of(ids)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def find(self, hashes: NDArray[np.uint64]) -> Ids:
        """[windows] where the first window with each of these hashes begins in the text; -1 where there is none."""
        places = np.searchsorted(self._sorted, hashes)
        found = np.full(len(hashes), -1)
        inside = np.flatnonzero(places < len(self._sorted))
        equal = inside[self._sorted[places[inside]] == hashes[inside]]
        found[equal] = self._order[places[equal]]
        return found


def hashes_of(ids: Ids) -> NDArray[np.uint64]:
    """[max(tokens - LEAST + 1, 0)] the hash of the window that begins at each token."""
    count = max(len(ids) - LEAST + 1, 0)
    tokens, hashes = ids.astype(np.uint64), np.zeros(count, np.uint64)
    for place in range(LEAST):
        hashes = hashes * _FACTOR + tokens[place : place + count]
    return hashes


def matches(prompt: Ids, texts: Sequence[Windows]) -> list[Match]:
    """Runs of prompt [tokens] that stand in one of the texts, ascending and apart from each other.

    From left to right: each run begins at the first token behind the one before at which any text has one, and is the
    longest of those that the texts have there, by the first place of each text that begins alike; of equally long ones
    the first text's. The first `MOST_RUNS` of them.
    """
    hashes = hashes_of(prompt)
    if not texts or not len(hashes):
        return []
    found = np.stack([text.find(hashes) for text in texts])  # [texts, windows]
    starts = np.flatnonzero((found >= 0).any(axis=0))
    runs, at = list[Match](), 0
    while at < len(starts) and len(runs) < MOST_RUNS:
        start = int(starts[at])
        here = [(number, int(found[number, start])) for number in np.flatnonzero(found[:, start] >= 0).tolist()]
        run = max(
            (Match(number, place, start, _common(prompt[start:], texts[number].ids[place:])) for number, place in here),
            key=lambda run: run.length,
        )
        if run.length < LEAST:  # two windows with one hash
            at += 1
            continue
        runs.append(run)
        at = int(np.searchsorted(starts, start + run.length))
    return runs


def _common(one: Ids, other: Ids) -> int:
    """How many first tokens are equal."""
    length, at, count = min(len(one), len(other)), 0, LEAST
    while at < length:  # in growing parts: texts are long, and most runs are short
        differ = np.flatnonzero(one[at : min(at + count, length)] != other[at : min(at + count, length)])
        if len(differ):
            return at + int(differ[0])
        at, count = at + count, 2 * count
    return length
