"""How fast requests end, and so when a full queue will have room again."""

import time
from collections import deque
from collections.abc import Callable
from math import ceil

MAX_ENDS = 64
"""Requests whose ends are remembered."""
WINDOW_SECONDS = 60.0
"""Ends longer ago say nothing of now; and nobody is told to wait for longer."""


class Pace:
    """Of one server."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=MAX_ENDS)

    def count_end(self) -> None:
        """A request has ended, however it did."""
        self._ends.append(self._clock())

    def seconds_to_halve(self, num_waiting: int) -> int:
        """Until half of a queue of so many is served: others who are refused come back at about the same time.

        1 where nothing is known: no request has ended lately.
        """
        now = self._clock()
        recent = [end for end in self._ends if now - end < WINDOW_SECONDS]
        if not recent:
            return 1
        seconds_each = (now - recent[0]) / len(recent)
        return max(1, ceil(min(num_waiting / 2 * seconds_each, WINDOW_SECONDS)))
