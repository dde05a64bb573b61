"""Work beside the event loop, where it is long enough for others to notice."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 256
"""Tokens that are read or written in less time than a hop to a thread is worth."""


async def aside(num_tokens: int, work: Callable[[], T]) -> T:
    """What `work` returns, done in a thread if it is about many tokens."""
    return work() if num_tokens <= AT_ONCE else await asyncio.to_thread(work)
