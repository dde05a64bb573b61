"""How much longer a step takes while clients stream: the same requests to an engine alone, and to a server.

The server is a process of its own; clients and the engine alone are in this one. Both serve the bundled model with
default settings. What differs is a server's thread beside the engine's, with HTTP, text and the interpreter's lock.
"""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from engine import (
    DEMO_MODEL,
    ConfigError,
    DiffusionParams,
    EngineConfig,
    EngineLoop,
    SamplingParams,
    Submission,
    load,
)
from server.bench.serve.client import Client
from server.bench.serve.prompts import LoadRequest
from server.bench.serve.run import closed_loop
from server.remote import connect, first_model

PROMPT, ANSWER = 32, 64
"""Tokens of each request."""
EACH = 8
"""Requests of each client, one after the other."""
START_SECONDS = 120.0
"""Within which the server must be ready."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """Means over all steps."""

    microseconds: float
    """Of one step for one of its requests, the forward included."""
    requests: float
    """In one step."""


@dataclass(frozen=True, slots=True)
class StreamingFigures:
    """The same load twice."""

    clients: int
    alone: StepCost
    """Requests handed to the engine, whose blocks somebody takes."""
    streaming: StepCost
    """Requests over HTTP, each block one event of a stream."""

    @property
    def ratio(self) -> float:
        return self.streaming.microseconds / self.alone.microseconds


async def bench_streaming(clients: int, progress: Callable[[int, int], None]) -> StreamingFigures:
    """`progress` is called with the requests done and those there are. Raises ConfigError without a server."""
    done, total = 0, 2 * clients * EACH

    def one_more() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    progress(0, total)
    alone = await _alone(clients, one_more)
    return StreamingFigures(clients, alone, await _over_http(clients, one_more))


async def _alone(clients: int, done: Callable[[], None]) -> StepCost:
    loop = EngineLoop(await asyncio.to_thread(load, EngineConfig(model=DEMO_MODEL)))
    loop.start()

    async def ask(number: int) -> None:
        for turn in range(EACH):
            [stream] = loop.submit([_submission(f"{number}-{turn}", number)])
            async for _ in stream:
                pass
            done()

    await asyncio.gather(*(ask(number) for number in range(clients)))
    stats = loop.stats.decoding
    await loop.stop(0)
    return _cost(
        stats.forward_seconds.total + stats.host_seconds.total, stats.denoising_steps, stats.forward_seconds.count
    )


async def _over_http(clients: int, done: Callable[[], None]) -> StepCost:
    async with _server() as url, connect(url, "no key is needed") as http:
        client = Client(http, await first_model(http), "completions", {"ignore_eos": True})
        requests = [
            LoadRequest(prompt=_prompt(number % clients), max_tokens=ANSWER) for number in range(clients * EACH)
        ]
        run = await closed_loop(client.send, requests, clients, done)
        if run.failures:
            raise ConfigError(f"{len(run.failures)} requests failed: {run.failures[0].reason}")
        page = (await http.get(f"{url}/metrics")).text
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line[:1] != "#"}

    def total(name: str) -> float:
        return sum(value for key, value in values.items() if key.startswith(name + "{"))

    steps = total("unmask_step_seconds_count") / 2  # of both parts
    return _cost(total("unmask_step_seconds_sum"), total("unmask_denoising_steps_total"), steps)


def _cost(seconds: float, request_steps: float, steps: float) -> StepCost:
    return StepCost(1e6 * seconds / request_steps, request_steps / steps)


def _prompt(number: int) -> list[int]:
    return [5 + (7 * number + place) % 90 for place in range(PROMPT)]


def _submission(request_id: str, number: int) -> Submission:
    return Submission(
        request_id=request_id,
        prompt_ids=_prompt(number),
        sampling=SamplingParams(max_tokens=ANSWER, ignore_eos=True),
        diffusion=DiffusionParams(),
    )


@asynccontextmanager
async def _server() -> AsyncIterator[str]:
    """The URL of a server of the bundled model, which ends with the context."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "server.cli", "serve", "--port", str(port), "--log-level", "error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - this program itself
    try:
        async with httpx.AsyncClient() as http:
            try:
                await asyncio.wait_for(_ready(http, f"{url}/ready", process), START_SECONDS)
            except TimeoutError:
                raise ConfigError(f"the server was not ready within {START_SECONDS:.0f} s") from None
        yield url
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def _ready(http: httpx.AsyncClient, url: str, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        try:
            if (await http.get(url)).is_success:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise ConfigError(f"the server ended at its start, with exit code {process.returncode}")
