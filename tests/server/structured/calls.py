"""A clock that counts calls of functions, for bounds on time: with one Python the same on every machine, however busy.

What one call of numpy does is one call, whatever it costs: sizes of arrays have bounds of their own (`Budget`).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from server.structured import budget

PER_SECOND = 1_000_000
"""Calls in what a budget takes for a second. Compiling makes about two million in a real one."""


class Clock:
    """Calls of Python's and C's functions since it runs."""

    def __init__(self) -> None:
        self.events = 0

    def count(self, *_: object) -> None:
        """A profiler's event: a call or its end."""
        self.events += 1

    def seconds(self) -> float:
        return self.events / 2 / PER_SECOND


@contextmanager
def clock_of_calls() -> Iterator[Clock]:
    """Budgets go by it within the block, and it stands still after it."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "thread_time", clock.seconds)
        sys.setprofile(clock.count)
        try:
            yield clock
        finally:
            sys.setprofile(None)
