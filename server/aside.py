"""Runs long work in a thread, so that it does not block the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 256
"""Work on up to this many tokens runs on the event loop: a switch to a thread would take longer."""


async def aside(num_tokens: int, work: Callable[[], T]) -> T:
    """The result of `work`, which runs in a thread if it is about more than `AT_ONCE` tokens."""
    return work() if num_tokens <= AT_ONCE else await asyncio.to_thread(work)
