"""Certainty density: how many of a position's neighbours are known, where nearer ones weigh more (d2Cache, 2509.23094).

A pure function of a mask; both the `d2` cache policy and the `certainty` unmask policy rank by it.
"""

from functools import lru_cache
from math import ceil

import numpy as np

from engine.core.arrays import Floats, Mask

REACH = 6.0
"""Neighbours farther away than this many sigma weigh less than 2e-8 and are left out."""
LONG_KERNEL = 512
"""From this many weights on, an FFT is faster than a sum for each position."""


def certainty_density(known: Mask, sigma: float) -> Floats:
    """bool [canvas] -> density [canvas] in (0, 1): the known neighbours' share of a Gaussian of width sigma.

    The canvas is extended by its own length on both sides: to the left as known, to the right like its last position.
    Positions farther out count as unknown.
    """
    length = len(known)
    kernel, total = _kernel(length, sigma)
    reach = len(kernel) // 2
    beside = min(reach, length)
    extended = np.concatenate((np.ones(beside), known, np.full(beside, float(known[-1]))))
    return _convolved(extended, kernel)[reach + beside : reach + beside + length] / total


def _convolved(values: Floats, kernel: Floats) -> Floats:
    """The convolution [len(values) + len(kernel) - 1 or more]; entries beyond that length mean nothing."""
    if len(kernel) < LONG_KERNEL:
        return np.convolve(values, kernel)
    size = 1 << (len(values) + len(kernel) - 2).bit_length()
    return np.fft.irfft(np.fft.rfft(values, size) * np.fft.rfft(kernel, size), size)


@lru_cache(maxsize=64)
def _kernel(length: int, sigma: float) -> tuple[Floats, float]:
    """The Gaussian over the distances that matter, and its sum over all of -3 length .. 3 length - 1."""
    reach = min(ceil(REACH * sigma), 2 * length)
    distances = np.arange(-reach, reach + 1)
    everywhere = np.arange(-3 * length, 3 * length)
    return np.exp(-(distances**2) / (2 * sigma**2)), float(np.exp(-(everywhere**2) / (2 * sigma**2)).sum())
