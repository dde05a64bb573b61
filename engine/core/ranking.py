"""Which of several values are the highest: ties go to the leftmost, so that results do not depend on the sort."""

import numpy as np

from engine.core.arrays import Floats, Ids, Mask


def best_first(values: Floats) -> Ids:
    """Indices from the highest to the lowest, the leftmost first among equals."""
    return np.argsort(-values, kind="stable")


def top(values: Floats, count: int) -> Mask:
    """The `count` highest."""
    chosen = np.zeros(len(values), dtype=np.bool_)
    if count == 1:
        chosen[values.argmax()] = True  # also the leftmost of equals
    else:
        chosen[best_first(values)[:count]] = True
    return chosen
