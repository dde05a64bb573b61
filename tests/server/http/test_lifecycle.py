"""The end of a server, over real sockets: drained by a first signal, cut short by a second."""

import asyncio
import errno
import os
import signal
import socket
from dataclasses import replace

import httpx
import pytest

from server.guards.places import ACCEPTED_AT_ONCE
from server.http import lifecycle
from server.http.app import create_app
from server.http.lifecycle import Server
from server.settings.tree import build


class DrainingEngine:
    """A fake engine whose `stop` lasts until the test is done with it."""

    def __init__(self, engine):
        self._engine = engine
        self.stops = []
        self.drained = asyncio.Event()

    def __getattr__(self, name):
        return getattr(self._engine, name)

    async def stop(self, drain_seconds):
        self.stops.append(drain_seconds)
        await self._engine.stop(drain_seconds)
        if drain_seconds:
            await self.drained.wait()


@pytest.fixture
async def running(engine, tokenizer, listening):
    """(client, draining engine, task of the server) of a server that takes requests."""
    engine.script = None
    draining = DrainingEngine(engine)
    async with listening(draining, tokenizer) as (url, task), httpx.AsyncClient(base_url=url, timeout=5) as client:
        yield client, draining, task
        draining.drained.set()


async def next_event(lines):
    return await asyncio.wait_for(anext(line async for line in lines if line), 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_streams_finish_and_refuses_new_requests(running, engine, number):
    client, draining, task = running
    async with client.stream("POST", "/v1/completions", json={"prompt": "ab", "stream": True}) as response:
        lines = response.aiter_lines()
        engine.streams[0].put("one ")
        assert "one " in await next_event(lines)

        os.kill(os.getpid(), number)
        while not draining.stops:
            await asyncio.sleep(0.01)
        refused = await client.post("/v1/completions", json={"prompt": "ab"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200

        engine.streams[0].play(["two"])
        draining.drained.set()
        assert "two" in await next_event(lines)
        assert await next_event(lines) == "data: [DONE]"
    await asyncio.wait_for(task, 5)
    assert draining.stops[0] == 5.0


async def is_answered(client):
    """Whether a new connection is still accepted."""
    try:
        await client.get("/health", headers={"connection": "close"})
    except httpx.TransportError:
        return False
    return True


async def test_a_request_on_an_open_connection_after_draining_is_refused_and_not_lost(running, monkeypatch):
    client, draining, task = running
    monkeypatch.setattr(lifecycle, "LINGER_SECONDS", 2.0)
    assert (await client.get("/health")).status_code == 200  # its connection stays open
    draining.drained.set()
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5), httpx.AsyncClient(base_url=client.base_url) as newcomer:
        while await is_answered(newcomer):
            pass
    assert (await client.post("/v1/completions", json={"prompt": "ab"})).status_code == 503
    await asyncio.wait_for(task, 5)


@pytest.mark.parametrize(
    ("running", "waiting", "line"),
    [
        (0, 0, "shutting down: nothing is running"),
        (2, 3, "shutting down: unfinished requests (5) get 5 s; a second signal ends it at once"),
    ],
)
async def test_the_log_says_what_the_end_waits_for(engine, tokenizer, listening, caplog, running, waiting, line):
    caplog.set_level("INFO")
    engine.stats = replace(engine.stats, running=running, waiting=waiting)
    async with listening(engine, tokenizer) as (_, task):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(asyncio.shield(task), 5)
    assert [record.message for record in caplog.records if record.name == "server.http.lifecycle"] == [line]


async def test_a_second_signal_ends_it_at_once(running, monkeypatch):
    _, draining, _ = running
    codes = []
    monkeypatch.setattr(lifecycle.os, "_exit", codes.append)
    os.kill(os.getpid(), signal.SIGTERM)
    while not draining.stops:
        await asyncio.sleep(0.01)
    assert codes == []
    os.kill(os.getpid(), signal.SIGTERM)
    while not codes:
        await asyncio.sleep(0.01)
    assert codes == [lifecycle.FORCED]


async def test_a_shutdown_that_hangs_is_cut_short(running, monkeypatch):
    _, draining, _ = running
    monkeypatch.setattr(lifecycle, "GRACE_SECONDS", -4.8)
    codes = []
    monkeypatch.setattr(lifecycle.os, "_exit", codes.append)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5):
        while not codes:
            await asyncio.sleep(0.01)
    assert codes == [lifecycle.FORCED]
    assert not draining.drained.is_set()


async def test_a_server_whose_engine_has_died_ends(engine, tokenizer, listening):
    async with listening(engine, tokenizer) as (_, task):
        await asyncio.sleep(0.3)
        assert not task.done()
        engine.died = True
        await asyncio.wait_for(asyncio.shield(task), 5)


@pytest.mark.parametrize(
    ("died", "started", "code"), [(True, True, lifecycle.ENGINE_DIED), (False, True, 0), (False, False, 1)]
)
async def test_the_exit_code_says_how_it_ended(app, engine, died, started, code):
    server = Server(app, engine, build({}).server, announce=lambda: None)
    engine.died, server.started = died, started
    assert await server.on_tick(1) is died
    assert server.exit_code == code


async def test_a_client_that_hangs_up_is_noticed(running, engine):
    client, _, _ = running
    async with client.stream("POST", "/v1/completions", json={"prompt": "ab", "stream": True}):
        await engine.submitted.wait()
    await asyncio.wait_for(engine.streams[0].aborted.wait(), 5)


async def test_a_client_that_gives_up_waiting_is_noticed(running, engine):
    client, _, _ = running
    waiting = asyncio.ensure_future(client.post("/v1/completions", json={"prompt": "ab"}))
    await engine.submitted.wait()
    waiting.cancel()
    await asyncio.wait_for(engine.streams[0].aborted.wait(), 5)


async def test_that_no_file_can_be_opened_is_told_once_in_a_while(caplog):
    """asyncio says so for each connection that waits, thousands of times a second."""
    handler, loop = lifecycle._RateLimitedHandler(), asyncio.get_running_loop()
    for number in (errno.EMFILE, errno.ENFILE):
        for _ in range(1000):
            handler(
                loop, {"message": "socket.accept() out of system resource", "exception": OSError(number, "no files")}
            )
    assert [record.getMessage() for record in caplog.records] == [
        "no more files can be opened (no files): new connections wait"
    ]
    handler(loop, {"message": "another thing", "exception": OSError(errno.EIO, "broken")})
    assert "another thing" in caplog.text


async def test_more_connections_wait_in_the_kernel_than_are_accepted_in_one_go(engine, tokenizer):
    """Accepted ones hold a file each before they are counted."""
    listened = []

    class Socket(socket.socket):
        def listen(self, backlog):
            listened.append(backlog)
            super().listen(backlog)

    settings = build({})
    server = Server(create_app(engine, tokenizer, settings), engine, settings.server, announce=lambda: None)
    with Socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup([sock])
        server.should_exit = True
        await server.shutdown()
    assert listened == [ACCEPTED_AT_ONCE, lifecycle.BACKLOG]
