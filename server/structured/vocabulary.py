"""The spellings of a vocabulary as a tree of bytes, level by level. Made once for a tokenizer; knows no automaton."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Level:
    """The nodes of the tree at one depth."""

    parents: Index
    """[nodes] each node's parent, among the nodes of the level above."""
    data: NDArray[np.uint8]
    """[nodes] the byte that leads there."""
    ids: Index
    """[ends] the tokens whose spelling ends here."""
    ends: Index
    """[ends] the nodes where they end."""


class Vocabulary:
    """Spelling of each token. One without a spelling (special tokens, the mask) fits nowhere."""

    def __init__(self, spellings: Sequence[bytes]) -> None:
        self.size = len(spellings)
        order = sorted((id_ for id_ in range(self.size) if spellings[id_]), key=spellings.__getitem__)
        self.levels = tuple(_levels([spellings[id_] for id_ in order], np.array(order, np.int64)))


def _levels(sorted_spellings: list[bytes], ids: Index) -> list[Level]:
    data = np.frombuffer(b"".join(sorted_spellings), np.uint8)
    lengths = np.array([len(spelling) for spelling in sorted_spellings], np.int64)
    starts = np.cumsum(lengths) - lengths
    levels: list[Level] = []
    is_here = np.arange(len(ids))  # the spellings that are long enough
    node = np.zeros(len(ids), np.int64)
    depth = 0
    while len(is_here):
        key = node[is_here] * 256 + data[starts[is_here] + depth]
        keys, node[is_here] = np.unique(key, return_inverse=True)
        depth += 1
        ends = is_here[lengths[is_here] == depth]
        levels.append(Level(keys // 256, (keys % 256).astype(np.uint8), ids[ends], node[ends]))
        is_here = is_here[lengths[is_here] > depth]
    return levels
