"""A stream in which nothing happens for a while."""

import asyncio
import json

import httpx
import pytest
from fastapi.sse import KEEPALIVE_COMMENT

from server.http import sse
from server.http.app import create_app
from server.settings.tree import build

COMMENT = KEEPALIVE_COMMENT.decode()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(sse, "SILENCE_SECONDS", 0.05)


async def messages(queue, log):
    try:
        while (message := await queue.get()) is not None:
            yield message
    except asyncio.CancelledError:
        log.append("cancelled")
        raise
    finally:
        log.append("closed")


async def test_a_silent_stream_gives_signs_of_life_and_goes_on_waiting(impatient):
    queue, log = asyncio.Queue(), []
    stream = sse._until(None, messages(queue, log))
    assert [await anext(stream) for _ in range(3)] == [[]] * 3
    queue.put_nowait("late")
    async with asyncio.timeout(5):
        while not (arrived := await anext(stream)):
            pass
        assert arrived == ["late"]
        queue.put_nowait(None)
        assert [rest async for rest in stream if rest] == []
    assert log == ["closed"]


async def test_what_has_arrived_goes_out_together_and_an_error_after_it():
    async def failing():
        yield "one"
        yield "two"
        raise ValueError("broken")

    stream = sse._until(None, failing())
    assert await anext(stream) == ["one", "two"]
    with pytest.raises(ValueError, match="broken"):
        await anext(stream)


async def test_whoever_does_not_read_holds_up_the_messages():
    told = []

    async def endless():
        while True:
            told.append(len(told))
            yield "message"

    stream = sse._until(None, endless())
    await anext(stream)
    await asyncio.sleep(0.02)
    assert len(told) <= 2 * sse.AHEAD + 2
    await stream.aclose()


async def test_whoever_stops_reading_cancels_the_wait(impatient):
    log = []
    stream = sse._until(None, messages(asyncio.Queue(), log))
    assert await anext(stream) == []
    await stream.aclose()
    assert log == ["cancelled", "closed"]


async def test_comments_go_out_before_the_first_block_and_between_two(impatient, engine, tokenizer):
    engine.script = None
    app = create_app(engine, tokenizer, build({}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        sending = asyncio.create_task(client.post("/v1/completions", json={"prompt": "ab", "stream": True}))
        await asyncio.wait_for(engine.submitted.wait(), 5)
        await asyncio.sleep(0.2)
        engine.streams[0].put("one ")
        await asyncio.sleep(0.2)
        engine.streams[0].play(["two"])
        text = (await asyncio.wait_for(sending, 5)).text
    before, one, between, *_ = text.partition(next(line for line in text.splitlines() if "one " in line))
    assert COMMENT in before
    assert COMMENT in between
    assert one
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    assert [json.loads(event)["choices"][0]["text"] for event in events] == ["one ", "two"]


async def test_a_lively_stream_has_none(api, engine):
    engine.script = lambda _: ["one"] * 20
    assert ":" not in [line[:1] for line in (await api.complete(stream=True)).text.splitlines()]
