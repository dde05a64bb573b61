"""The time limit of one request, whatever it is doing when the time is over."""

import asyncio

import httpx
import pytest

from server.http.app import create_app
from server.settings.tree import build


@pytest.fixture
def limited(engine, tokenizer):
    engine.script = None
    app = create_app(engine, tokenizer, build({"request_timeout": 1.0, "read_timeout": 0.2}))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_an_answer_that_takes_too_long_is_a_504(api, engine, limited):
    response = await limited.post("/v1/completions", json={"prompt": ["ab", "cd"]})
    error = api.error_of(response, 504)
    assert error["code"] == "request_timeout"
    assert response.headers["x-should-retry"] == "false"
    assert all(stream.aborted.is_set() for stream in engine.streams)


async def test_a_stream_that_takes_too_long_says_so_at_its_end(api, engine, limited):
    sending = asyncio.create_task(limited.post("/v1/completions", json={"prompt": "ab", "stream": True}))
    await engine.submitted.wait()
    for _ in range(2):
        await asyncio.sleep(0.02)
        engine.streams[0].put("one ")
    response = await sending
    assert response.status_code == 200
    *blocks, end = api.events_of(response.text)
    assert [block["choices"][0]["text"] for block in blocks] == ["one ", "one "]
    assert end["error"]["code"] == "request_timeout"
    assert engine.streams[0].aborted.is_set()


async def test_a_fast_request_is_left_alone(engine, limited):
    for stream in (False, True):
        engine.script = lambda _: ["one"]
        response = await limited.post("/v1/completions", json={"prompt": "ab", "stream": stream})
        await asyncio.sleep(0.3)
        assert response.status_code == 200
        assert "error" not in response.text


async def test_zero_is_no_limit(engine, tokenizer):
    app = create_app(engine, tokenizer, build({"request_timeout": 0}))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    for stream in (False, True):
        response = await client.post("/v1/completions", json={"prompt": "ab", "stream": stream})
        assert response.status_code == 200
        assert "one two" in response.text or stream


async def test_a_body_that_does_not_come_is_a_408(api, limited):
    async def dribble():
        for _ in range(100):
            yield b" "
            await asyncio.sleep(0.05)

    headers = {"content-type": "application/json"}
    response = await limited.post("/v1/completions", content=dribble(), headers=headers)
    assert "0.2 seconds" in api.error_of(response, 408)["message"]
