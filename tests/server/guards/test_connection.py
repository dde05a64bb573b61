"""One connection on a real socket: clients that do not read, do not ask, ask for what is no HTTP, or are too many."""

import asyncio
import json
from contextlib import suppress

import httpx
import pytest

BODY = json.dumps({"prompt": "ab", "stream": True}).encode()
REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
    % (len(BODY), BODY)
)


@pytest.mark.slow
async def test_a_client_that_does_not_read_is_cut_off(connect, engine, tokenizer, listening):
    engine.script = None
    async with listening(engine, tokenizer, write_timeout=0.3) as (url, _):
        reader, writer = await connect(url, receive_buffer=4096)
        reader._transport.pause_reading()
        writer.write(REQUEST)
        await asyncio.wait_for(engine.submitted.wait(), 5)
        (stream,) = engine.streams
        num_put = 0
        async with asyncio.timeout(10):
            while not stream.aborted.is_set():
                if num_put < 1000:
                    stream.put("x" * 50_000)
                    num_put += 1
                await asyncio.sleep(0.001)


@pytest.mark.slow
async def test_a_slow_client_that_does_read_gets_everything(connect, engine, tokenizer, listening):
    num_blocks = 200
    engine.script = lambda _: ["x" * 20_000] * num_blocks
    async with listening(engine, tokenizer, write_timeout=0.5) as (url, _):
        reader, writer = await connect(url, receive_buffer=4096)
        writer.write(REQUEST)
        await asyncio.sleep(0.3)
        received = bytearray()
        async with asyncio.timeout(20):
            while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                received += await reader.read(65_536)
                await asyncio.sleep(0.0005)
        assert received.count(b"x" * 20_000) == num_blocks


@pytest.mark.parametrize("start", [b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nhost: x\r\n"])
async def test_a_client_that_does_not_finish_its_headers_is_cut_off(connect, engine, tokenizer, listening, start):
    async with listening(engine, tokenizer, read_timeout=0.3) as (url, _):
        reader, writer = await connect(url)
        for _ in range(10):
            writer.write(start[:1])
            start = start[1:]
            if reader.at_eof():
                break
            await asyncio.sleep(0.05)
        writer.write(start)
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_a_second_request_is_awaited_as_patiently(engine, tokenizer, listening):
    async with listening(engine, tokenizer, read_timeout=0.3) as (url, _), httpx.AsyncClient(base_url=url) as client:
        for _ in range(3):
            assert (await client.get("/health")).status_code == 200
            await asyncio.sleep(0.4)
        engine.script = None
        waiting = asyncio.create_task(client.post("/v1/completions", json={"prompt": "ab"}))
        await engine.submitted.wait()
        await asyncio.sleep(0.5)
        engine.streams[0].play(["one"])
        assert (await waiting).status_code == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n{}",
    ],
)
async def test_what_is_no_http_is_a_400_in_openais_form(connect, answer, engine, tokenizer, listening, request_bytes):
    async with listening(engine, tokenizer) as (url, _):
        reader, writer = await connect(url)
        writer.write(request_bytes)
        status, headers, body = await answer(reader)
        assert status == "HTTP/1.1 400 Bad Request"
        assert len(headers["x-request-id"]) == 32
        assert set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("headers", [{f"x-{i}": "x" for i in range(101)}, {"x": "x" * 70_000}])
async def test_too_many_headers_are_a_431(api, headers):
    api.error_of(await api.client.get("/health", headers=headers), 431)


async def test_headers_that_arrive_in_pieces_are_bounded_on_the_way(connect, engine, tokenizer, listening):
    async with listening(engine, tokenizer) as (url, _):
        _, writer = await connect(url)
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nx: ")
        async with asyncio.timeout(5):
            while not writer.transport.is_closing():
                writer.write(b"x" * 10_000)
                await asyncio.sleep(0.005)


async def test_one_client_too_many_is_a_503_but_probes_are_answered(api, connect, engine, tokenizer, listening):
    async with listening(engine, tokenizer, max_connections=3) as (url, _):
        idle = [await connect(url) for _ in range(3)]
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/health")).status_code == 200
            refused = await client.post("/v1/completions", json={"prompt": "ab"})
            assert api.error_of(refused, 503)["type"] == "service_unavailable_error"
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["connection"] == "close"
            idle.pop()[1].close()
            await asyncio.sleep(0.05)
            assert (await client.post("/v1/completions", json={"prompt": "ab"})).status_code == 200
            metrics = (await client.get("/metrics")).text
            assert 'unmask_requests_rejected_total{model_name="demo",reason="too_many_connections"} 1.0' in metrics
