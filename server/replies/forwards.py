"""Engine requests that take one forward each, many of them for one HTTP request: scored tokens, decisions.

They are submitted a bounded number at a time, and leave half of the engine's queue to other requests.
"""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice

from engine import EngineLoop, Output, OutputStream, QueueFull, RequestFailed, Submission, Usage
from server.replies.choice import check_end
from server.threads import in_thread_if_long

PATIENCE_SECONDS = 0.02
"""Pause between looks at a full queue."""
IDS_PER_TOKEN = 64
"""Ids that can be checked in the time that reading or writing one token takes."""


class Forwards:
    """Runs lists of such requests."""

    def __init__(self, engine: EngineLoop) -> None:
        self._engine = engine
        self._max_waiting = max(1, engine.info.max_queued_requests // 2)
        self._turn = asyncio.Lock()
        """Held by the one submission that polls the queue. Thousands may wait for the lock instead of polling."""

    async def run(self, submissions: Iterable[Submission], at_once: int) -> list[Output]:
        """The one block of each request, in order; `at_once` of them are with the engine at a time.

        Waits while half of the queue's places are taken, and raises what `EngineLoop.submit` raises otherwise, and
        RequestFailed.
        """
        remaining = iter(submissions)
        streams: list[OutputStream] = []
        readers: list[asyncio.Task[Output]] = []
        unread: set[asyncio.Task[Output]] = set()
        try:
            while True:
                await self._submit(list(islice(remaining, at_once - len(unread))), streams)
                begun = [asyncio.create_task(_block(stream)) for stream in streams[len(readers) :]]
                readers += begun
                unread |= {*begun}
                if not unread:
                    return [reader.result() for reader in readers]
                read, unread = await asyncio.wait(unread, return_when=asyncio.FIRST_COMPLETED)
                for reader in read:
                    reader.result()  # raises what it raised
        finally:
            for stream in streams:
                stream.abort()
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _submit(self, batch: Sequence[Submission], streams: list[OutputStream]) -> None:
        """Submits as many at a time as there are places, and adds their streams.

        Raises EngineUnavailable if the engine takes no requests.
        """
        if not batch:
            return
        num_ids = sum(len(one.prompt_ids) for one in batch)
        requests = await in_thread_if_long(num_ids // IDS_PER_TOKEN, partial(self._engine.prepare, batch))
        async with self._turn:
            while requests:
                places = max(self._max_waiting - self._engine.num_waiting, 0)
                if some := requests[: places if self._engine.accepting else 1]:
                    try:
                        streams += self._engine.enqueue(some)
                    except QueueFull:
                        pass
                    else:
                        requests = requests[len(some) :]
                        continue
                await asyncio.sleep(PATIENCE_SECONDS)


def spent(blocks: Sequence[Output]) -> Usage:
    """What the requests have cost together, without tokens: these are for the caller to count."""
    return Usage(
        prompt_tokens=0,
        completion_tokens=0,
        forwards=sum(block.usage.forwards for block in blocks),
        rows_computed=sum(block.usage.rows_computed for block in blocks),
        cached_tokens=sum(block.usage.cached_tokens for block in blocks),
    )


async def _block(stream: OutputStream) -> Output:
    """The request's one block."""
    found: Output | None = None
    async for output in stream:
        assert isinstance(output, Output)  # nobody watches these requests
        check_end(output)
        found = output if found is None or output.token_ids else found
    if found is None or not found.token_ids:
        raise RequestFailed("The engine said nothing of a request that takes one forward.")
    return found
