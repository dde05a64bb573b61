"""How often values fell into which bins. Knows nothing of what is counted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram's reading."""

    bounds: tuple[float, ...]
    """Upper ends of all bins but the last, which has none; a value equal to an end counts in the bin below it."""
    counts: tuple[int, ...]
    """[len(bounds) + 1] values in each bin."""
    total: float
    """Sum of all values."""

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> "Distribution":
        return cls(bounds, (0,) * (len(bounds) + 1), 0.0)

    @property
    def count(self) -> int:
        return sum(self.counts)


class Histogram:
    """Counts values by bins. One thread adds; another may read."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._edges = np.asarray(bounds)
        self._counts: NDArray[np.int64] = np.zeros(len(bounds) + 1, np.int64)
        self._total = 0.0

    def add(self, values: NDArray[np.float64] | Sequence[float]) -> None:
        values = np.asarray(values, np.float64)
        # "left" counts a value equal to an end in the bin below it, as Prometheus does.
        self._counts += np.bincount(np.searchsorted(self._edges, values, "left"), minlength=len(self._counts))
        self._total += float(values.sum())

    def read(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts.tolist()), self._total)
