"""The rate at which requests end, from which follows when a full queue will have room again."""

import time
from collections import deque
from collections.abc import Callable
from math import ceil

MAX_ENDS = 64
"""Requests whose ends are remembered."""
WINDOW_SECONDS = 60.0
"""Older ends are ignored. Also the longest wait that `seconds_to_halve` returns."""


class Pace:
    """The pace of one server. `clock`: in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=MAX_ENDS)

    def count_end(self) -> None:
        """Records that a request has ended, for whatever reason."""
        self._ends.append(self._clock())

    def seconds_to_halve(self, num_waiting: int) -> int:
        """Seconds until half of a queue of `num_waiting` requests is served.

        Half, and not one place, because other refused clients come back at about the same time. 1 if no request has
        ended within `WINDOW_SECONDS`.
        """
        now = self._clock()
        recent = [end for end in self._ends if now - end < WINDOW_SECONDS]
        if not recent:
            return 1
        seconds_each = (now - recent[0]) / len(recent)
        return max(1, ceil(min(num_waiting / 2 * seconds_each, WINDOW_SECONDS)))
