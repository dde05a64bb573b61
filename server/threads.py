"""Runs long work in a thread, so that it does not block the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

MAX_TOKENS_ON_LOOP = 256
"""Work on up to this many tokens runs on the event loop: a switch to a thread would take longer."""


async def in_thread_if_long(num_tokens: int, work: Callable[[], T]) -> T:
    """The result of `work`, which runs in a thread if it is about more than `MAX_TOKENS_ON_LOOP` tokens."""
    return work() if num_tokens <= MAX_TOKENS_ON_LOOP else await asyncio.to_thread(work)
