"""How a real server process ends: under load, against its bound, by force, and when its engine has died or hangs."""

import asyncio
import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import httpx
import pytest

from server.http.lifecycle import ENGINE_DIED, FORCED, GRACE_SECONDS
from tests.faulty_server import DEATH, STANDSTILL, faulty_server

NUM_STREAMS = 16


def body(prompt=(5, 6, 7), steps=128):
    """A request of as many forwards as it has tokens."""
    diffusion = {"cache": "none", "unmask": "fixed", "block_length": 8}
    return {"prompt": list(prompt), "max_tokens": steps, "stream": True, "ignore_eos": True, "diffusion": diffusion}


@pytest.fixture
async def start(llada_tiny, tmp_path):
    """`async with start(*flags) as (client, process)`."""

    class Started:
        def __init__(self, *flags, **program):
            self.context = faulty_server(llada_tiny, tmp_path / "log", *flags, **program)

        async def __aenter__(self):
            url, process = self.context.__enter__()
            self.client = httpx.AsyncClient(base_url=url, timeout=60)
            return self.client, process

        async def __aexit__(self, *error):
            await self.client.aclose()
            self.context.__exit__(*error)

    return Started


async def stream(client, started=None, **changes):
    """The events of a stream, without the last, which must be [DONE]."""
    events = []
    async with client.stream("POST", "/v1/completions", json=body() | changes) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: "):  # no sign of life
                events.append(line.removeprefix("data: "))
                if started:
                    started.release()
                    started = None
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


async def begin(client, **changes):
    """Streams that all have had their first block."""
    started = asyncio.Semaphore(0)
    streams = [asyncio.create_task(stream(client, started, **changes)) for _ in range(NUM_STREAMS)]
    for _ in streams:
        await asyncio.wait_for(started.acquire(), 60)
    return streams


async def end(process, seconds):
    """The exit code of a process that must end in time."""
    return await asyncio.to_thread(process.wait, seconds)


def text(events):
    return "".join(event["choices"][0]["text"] for event in events)


@pytest.mark.slow
async def test_sigterm_under_load(start):
    async with start() as (client, process):
        alone = await stream(client)
        streams = await begin(client)
        process.terminate()
        async with asyncio.timeout(10):
            while (await client.get("/ready")).status_code != 503:
                await asyncio.sleep(0.01)
        refused = await client.post("/v1/completions", json=body())
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "service_unavailable_error"
        assert not any(task.done() for task in streams), "the load was over too early to show anything"
        for events in await asyncio.gather(*streams):
            assert text(events) == text(alone)
            assert events[-1]["choices"][0]["finish_reason"] == "length"
        assert await end(process, 15) == 0


@pytest.mark.slow
async def test_streams_that_do_not_end_in_time_say_so(start):
    async with start("--shutdown-timeout", "0.2") as (client, process):
        streams = await begin(client, **body(steps=512))
        process.terminate()
        begun = time.monotonic()
        for events in await asyncio.gather(*streams):
            assert events[-1]["error"]["type"] == "service_unavailable_error"
        assert await end(process, 15) == 0
        assert time.monotonic() - begun < 0.2 + GRACE_SECONDS


@pytest.mark.slow
async def test_a_second_signal_forces(start):
    async with start() as (client, process):
        streams = await begin(client, **body(steps=512))
        process.terminate()
        while (await client.get("/ready")).status_code != 503:
            await asyncio.sleep(0.01)
        process.terminate()
        assert await end(process, 5) == FORCED
        await asyncio.gather(*streams, return_exceptions=True)


@pytest.mark.slow
async def test_a_dead_engine_ends_the_process(start):
    async with start() as (client, process):
        streams = await begin(client, **body(steps=512))
        response = await client.post("/v1/completions", json=body(DEATH) | {"stream": False})
        assert response.status_code == 500
        for events in await asyncio.gather(*streams):
            assert events[-1]["error"]["type"] == "server_error"
        assert await end(process, 15) == ENGINE_DIED


@pytest.fixture
def start_ranks(start):
    return partial(start, "--tensor-parallel-size", "2", program="server.cli")


def follower_of(process):
    """The process that computes with this one."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    [follower] = [int(pid) for pid in children if "engine.execution.ranks" in Path(f"/proc/{pid}/cmdline").read_text()]
    return follower


@pytest.mark.slow
@pytest.mark.parametrize("is_idle", [True, False])
async def test_a_killed_follower_ends_the_process(start_ranks, is_idle):
    async with start_ranks() as (client, process):
        streams = [] if is_idle else await begin(client, **body(steps=512))
        os.kill(follower_of(process), signal.SIGKILL)
        for events in await asyncio.gather(*streams):
            assert events[-1]["error"]["type"] == "server_error"
        assert await end(process, 15) == ENGINE_DIED


@pytest.mark.slow
async def test_a_follower_does_not_outlive_a_killed_process(start_ranks):
    async with start_ranks() as (client, process):
        streams = await begin(client, **body(steps=512))
        status = Path(f"/proc/{follower_of(process)}/stat")
        process.kill()
        await asyncio.gather(*streams, return_exceptions=True)
        async with asyncio.timeout(15):
            while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_an_engine_that_hangs_is_seen_and_can_be_ended(start):
    async with start("--shutdown-timeout", "0.2", "--stuck-after", "2") as (client, process):
        assert (await client.get("/health")).status_code == 200
        hanging = asyncio.create_task(client.post("/v1/completions", json=body(STANDSTILL) | {"stream": False}))
        async with asyncio.timeout(10):
            while (await client.get("/health")).status_code != 503:
                await asyncio.sleep(0.05)
        process.terminate()
        await end(process, 0.2 + GRACE_SECONDS + 5)
        await asyncio.gather(hanging, return_exceptions=True)
