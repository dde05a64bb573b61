"""Connections that are held: answered before their body came, half closed, idle, or beyond what the server takes."""

import asyncio
import json
import re
import subprocess
import sys
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from engine import ConfigError
from server.guards import connection, places
from server.guards.places import OTHER_FILES, Places, affordable_connections

JSON = b"host: localhost\r\ncontent-type: application/json\r\n"
BODY = json.dumps({"prompt": "ab"}).encode()
STREAMED = json.dumps({"prompt": "ab", "stream": True}).encode()


def post(body, version=b"1.1"):
    length = b"content-length: %d\r\n\r\n" % len(body)
    return b"POST /v1/completions HTTP/%s\r\n" % version + JSON + length + body


PATIENCE_SECONDS = 60
"""For what comes, however busy the machine is."""


async def until(is_so):
    """Returns once it is so; raises TimeoutError if it never is."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_so():
            await asyncio.sleep(0.01)


async def until_closed(reader):
    """What comes until the connection is closed; raises TimeoutError if it stays open."""
    received = bytearray()
    async with asyncio.timeout(PATIENCE_SECONDS):
        with suppress(ConnectionError):
            while piece := await reader.read(65_536):
                received += piece
    return bytes(received)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "status", "settings"),
    [
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9", b"200", {}),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked", b"200", {}),
        (b"GET /nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9", b"404", {}),
        (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9", b"401", {"api_key": ["a"]}),
        (b"POST /v1/completions HTTP/1.1\r\n" + JSON + b"content-length: 99", b"413", {"max_body_bytes": 9}),
        (b"POST /v1/completions HTTP/1.1\r\n" + JSON + b"content-encoding: gzip\r\ncontent-length: 9", b"415", {}),
        (b"POST /v1/completions HTTP/1.1\r\n" + b"x: y\r\n" * 101 + JSON + b"content-length: 9", b"431", {}),
    ],
)
async def test_an_answer_before_its_body_holds_nothing(connect, engine, tokenizer, listening, head, status, settings):
    async with listening(engine, tokenizer, read_timeout=0.3, **settings) as (url, _):
        reader, writer = await connect(url)
        writer.write(head + b"\r\n\r\n")
        line = await asyncio.wait_for(reader.readline(), PATIENCE_SECONDS)
        assert line.split()[1] == status
        writer.write(b"2")  # a byte of the body, or of the first chunk's length
        await until_closed(reader)


async def test_the_rest_of_a_body_that_was_answered_already_is_let_in(connect, engine, tokenizer, listening):
    """And the connection serves on: a client that sends first and reads then gets both answers."""
    async with listening(engine, tokenizer) as (url, _):
        reader, writer = await connect(url)
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 200000\r\n\r\n")
        assert b"200" in await asyncio.wait_for(reader.readline(), PATIENCE_SECONDS)
        writer.write(b"x" * 200_000 + b"GET /version HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert b'{"version":' in await until_closed(reader)


@pytest.fixture
def probes(monkeypatch):
    """Of each probe so far: whether the answer had started. They follow each other quickly."""
    told, probe = [], connection.Connection._probe

    def watched(self, pause):
        told.append(self.cycle.response_started)
        probe(self, pause)

    monkeypatch.setattr(connection, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(connection, "MAX_PROBE_SECONDS", 0.02)
    monkeypatch.setattr(connection.Connection, "_probe", watched)
    return told


@pytest.mark.parametrize(("body", "end"), [(BODY, b'"one two"'), (STREAMED, b"data: [DONE]\n\n\r\n0\r\n\r\n")])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_half_closed_client_gets_its_answer(connect, engine, tokenizer, listening, probes, body, end, version):
    engine.script = None
    async with listening(engine, tokenizer) as (url, _):
        reader, writer = await connect(url)
        writer.write(post(body, version))
        writer.write_eof()
        await until(lambda: engine.submitted.is_set() and len(probes) >= 2 and probes[-1] is (body is STREAMED))
        engine.streams[0].play(["one ", "two"])
        received = await until_closed(reader)
        assert b" 200 OK" in received
        assert (b"HTTP/1.1 100 Continue" in received) is (version == b"1.1" and False in probes)
        assert end.removesuffix(b"\r\n0\r\n\r\n") in received
        assert version == b"1.0" or received.endswith(end) or end in received


async def test_a_half_closed_client_that_reads_late_gets_a_stream_of_whole_events(
    connect, engine, tokenizer, listening, probes
):
    engine.script = None
    async with listening(engine, tokenizer) as (url, _):
        reader, writer = await connect(url, receive_buffer=4096)
        reader._transport.pause_reading()
        writer.write(post(STREAMED))
        writer.write_eof()
        await until(engine.submitted.is_set)
        for _ in range(20):
            engine.streams[0].put("x" * 50_000)
        await until(lambda: probes.count(True) >= 10)
        engine.streams[0].play(["end"])
        reader._transport.resume_reading()
        received = await until_closed(reader)
        assert received.count(b"x" * 50_000) == 20
        probe = b"8\r\n: ping\n\n\r\n"  # one more may be sent between the last event and the end
        assert received.replace(probe, b"").endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("body", [BODY, STREAMED])
async def test_who_has_hung_up_is_noticed_all_the_same(connect, engine, tokenizer, listening, body):
    engine.script = None
    async with listening(engine, tokenizer) as (url, _):
        _, writer = await connect(url)
        writer.write(post(body))
        await until(engine.submitted.is_set)
        await asyncio.sleep(0.1)
        writer.close()
        await until(engine.streams[0].aborted.is_set)


@pytest.mark.parametrize("sent", [b"", b"GET /he", post(BODY)[:-1]])
async def test_half_a_request_is_not_waited_for_once_its_client_has_closed(connect, engine, tokenizer, listening, sent):
    async with listening(engine, tokenizer) as (url, _):
        reader, writer = await connect(url)
        writer.write(sent)
        writer.write_eof()
        await until_closed(reader)


async def test_a_connection_may_be_idle_for_as_long_as_is_set(connect, engine, tokenizer, listening):
    async with listening(engine, tokenizer, keep_alive_timeout=0.3) as (url, _):
        reader, writer = await connect(url)
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b'{"status":"ok"}' in await until_closed(reader)


@pytest.fixture
def crowded(monkeypatch, engine, tokenizer, listening):
    """A server of three places and two spare ones. What takes the places is answered at the end."""
    monkeypatch.setattr(places, "SPARE", 2)
    monkeypatch.setattr(places, "CROWDED_SECONDS", 0.3)
    monkeypatch.setattr(connection, "CROWDED_SECONDS", 0.3)
    engine.script = None
    engine.places = 100

    @asynccontextmanager
    async def serve():
        async with listening(engine, tokenizer, max_connections=3) as server:
            yield server
            for stream in engine.streams:
                stream.play(["end"])

    return serve()


async def test_beyond_the_limit_a_connection_lasts_seconds(connect, engine, crowded):
    async with crowded as (url, _):
        busy = [await connect(url) for _ in range(3)]
        for _, writer in busy:
            writer.write(post(BODY))
        await until(lambda: len(engine.streams) == 3)
        reader, _ = await connect(url)
        assert await until_closed(reader) == b""
        for reader, _ in busy:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.05)


async def test_far_beyond_it_the_newcomer_is_heard_and_the_oldest_goes(connect, engine, crowded):
    async with crowded as (url, _):
        for _ in range(3):
            (await connect(url))[1].write(post(BODY))
        await until(lambda: len(engine.streams) == 3)
        waiting = [await connect(url) for _ in range(20)]
        async with httpx.AsyncClient(base_url=url) as client:
            healthy = await client.get("/health")
            assert healthy.status_code == 200
            assert healthy.headers["connection"] == "close"
            assert (await client.get("/v1/models")).status_code == 503
        for reader, _ in waiting[:18]:
            await until_closed(reader)


async def test_in_a_full_server_who_asks_nothing_gives_way(connect, crowded):
    async with crowded as (url, _):
        idle = [await connect(url) for _ in range(3)]
        await asyncio.sleep(0.4)
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/v1/models")).status_code == 200
        assert await until_closed(idle[0][0]) == b""
        for reader, _ in idle[1:]:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.05)


class FakeConnection:
    def __init__(self):
        self.is_closed = False

    def close(self):
        self.is_closed = True


def test_places_are_given_back_and_the_busy_keep_theirs():
    two_places = Places(2)
    first, second, third, fourth = connections = [FakeConnection() for _ in range(4)]
    assert two_places.take(first, 0.0)
    two_places.record(first, is_idle=True, now=0.0)
    assert two_places.take(second, 1.0)
    two_places.record(second, is_idle=True, now=1.0)
    assert not two_places.take(third, 2.0)
    two_places.record(third, is_idle=True, now=2.0)
    two_places.record(first, is_idle=False, now=3.0)
    assert two_places.take(fourth, 9.0)
    assert [connection.is_closed for connection in connections] == [False, True, False, False]
    two_places.give_back(first)
    assert two_places.take(FakeConnection(), 9.0)


@pytest.fixture
def file_limit(monkeypatch):
    """`file_limit(soft, hard)`: what the process may open from now on, as a list that setrlimit changes."""

    def pretend(soft, hard):
        limits = [soft, hard]
        monkeypatch.setattr(places.resource, "getrlimit", lambda _: tuple(limits))
        monkeypatch.setattr(places.resource, "setrlimit", lambda _, new: limits.__setitem__(slice(None), new))
        return limits

    return pretend


BESIDE = places.SPARE + places.ACCEPTED_AT_ONCE + OTHER_FILES


@pytest.mark.parametrize(
    ("soft", "hard", "left", "raised"),
    [
        (4096, 4096, 1000, 4096),
        (1024, 1 << 20, 1000, 1000 + BESIDE),
        (256, -1, 1000, 1000 + BESIDE),
        (-1, -1, 1000, -1),
        (1024, 1024, 1024 - BESIDE, 1024),
        (512, 1024, 1024 - BESIDE, 1024),
    ],
)
def test_the_soft_limit_of_files_is_raised_as_far_as_connections_need_it(file_limit, soft, hard, left, raised):
    limits = file_limit(soft, hard)
    assert affordable_connections(1000) == left
    assert limits == [raised, hard]


def test_a_process_that_may_open_hardly_anything_does_not_start(file_limit):
    file_limit(256, 256)
    with pytest.raises(ConfigError, match="may open 256 files"):
        affordable_connections(1000)


@pytest.mark.slow
async def test_1100_idle_sockets_at_a_process_of_1024_files(connect, llada_tiny, tmp_path):
    """Each probe is answered, the log stays short, and what has its answer and owes a body goes in `read_timeout`."""
    command = [sys.executable, "-m", "server.cli", "serve", str(llada_tiny), "--port", "0", "--read-timeout", "5"]
    limited = ["bash", "-c", 'ulimit -n 1024 && exec "$@"', "bash", *command]
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(limited, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            report = "".join(iter(process.stdout.readline, "\n")) + process.stdout.readline()
            url = re.search(r"http://127.0.0.1:\d+", report)[0]
            for _ in range(1100):
                await connect(url)
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                for _ in range(20):
                    assert (await client.get("/health")).status_code == 200
            held = [await connect(url) for _ in range(700)]
            for reader, writer in held:
                writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n")
                with suppress(ConnectionError):
                    await reader.readline()
                    writer.write(b"x")
            for reader, _ in held:
                await until_closed(reader)
        finally:
            process.terminate()
        assert process.wait(timeout=40) == 0
    lines = log.read_text().splitlines()
    assert "max_connections is 640, not 1000" in lines[0]
    assert len(lines) < 3000
