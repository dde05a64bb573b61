"""Runs the load: a fixed number of requests in flight, or random arrivals, until all are answered or Ctrl-C."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from server.bench.serve.client import Failure, Sample
from server.bench.serve.prompts import LoadRequest

Sender = Callable[[LoadRequest], Awaitable[Sample | Failure]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """The results of a load."""

    samples: list[Sample]
    failures: list[Failure]
    seconds: float
    """From the first request to the last answer, or to the interruption."""
    interrupted: bool


async def closed_loop(
    send: Sender, requests: Sequence[LoadRequest], concurrency: int, done: Callable[[], None]
) -> LoadResult:
    """Keeps `concurrency` requests in flight. Each one that ends is followed by the next."""
    results: list[Sample | Failure] = []
    left = iter(requests)

    async def work() -> None:
        for request in left:
            results.append(await send(request))
            done()

    return await _until_done([work() for _ in range(min(concurrency, len(requests)))], results)


async def open_loop(
    send: Sender, requests: Sequence[LoadRequest], rate: float, seed: int, done: Callable[[], None]
) -> LoadResult:
    """Sends `rate` requests a second on average (a Poisson process), however many are unanswered."""
    results: list[Sample | Failure] = []

    async def send_later(request: LoadRequest, delay: float) -> None:
        await asyncio.sleep(delay)
        results.append(await send(request))
        done()

    return await _until_done([send_later(*pair) for pair in zip(requests, arrivals(rate, seed), strict=False)], results)


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Endless arrival times in seconds from the start; the first is 0. Gaps are exponential with mean 1 / rate."""
    rng, at = random.Random(seed), 0.0
    while True:
        yield at
        at += rng.expovariate(rate)


async def _until_done(work: Sequence[Awaitable[None]], results: list[Sample | Failure]) -> LoadResult:
    """Awaits all work. Ctrl-C, which cancels this task, ends the requests in flight and keeps the results so far."""
    started = time.perf_counter()
    everything = asyncio.gather(*work)
    interrupted = False
    try:
        await everything
    except asyncio.CancelledError:
        interrupted = True
        everything.cancel()
        with suppress(asyncio.CancelledError):
            await everything
    return LoadResult(
        samples=[result for result in results if isinstance(result, Sample)],
        failures=[result for result in results if isinstance(result, Failure)],
        seconds=time.perf_counter() - started,
        interrupted=interrupted,
    )
