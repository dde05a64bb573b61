"""What guards and observes the older routes does so for the newer ones."""

import asyncio
import logging

import httpx
import pytest

from engine import FinishReason
from server.http.app import create_app
from server.settings.tree import build
from tests.server.guards.test_disconnect import Client

from .asking import events_of

BODIES = {
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]},
}
each_route = pytest.mark.parametrize(("path", "body"), BODIES.items())


@each_route
@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_aborts(app, engine, path, body, stream):
    engine.script = None
    client = Client(app, path, stream=stream, **body)
    running = asyncio.create_task(client.run())
    await engine.submitted.wait()
    engine.streams[0].put("one ")
    await asyncio.sleep(0.01)
    assert not engine.streams[0].aborted.is_set()
    client.hung_up.set()
    await asyncio.wait_for(running, 1)
    assert engine.streams[0].aborted.is_set()


async def test_nobody_counts_for_a_client_that_has_gone(app, monkeypatch):
    monkeypatch.setattr(app.state.service.conversations, "read", lambda *_, **__: asyncio.Event().wait())
    client = Client(app, "/v1/messages/count_tokens", messages=[{"role": "user", "content": "hi"}])
    client.hung_up.set()
    await asyncio.wait_for(client.run(), 1)


@each_route
async def test_blocks_are_sent_as_they_come(app, engine, path, body):
    engine.script = None
    client = Client(app, path, stream=True, **body)
    running = asyncio.create_task(client.run())
    await engine.submitted.wait()
    for text in ("one", "two"):
        engine.streams[0].put(text)
        received = b""
        async with asyncio.timeout(1):
            while text.encode() not in received:
                received += (await client.received.get()).get("body", b"")
    engine.streams[0].put("", FinishReason.STOP)
    await asyncio.wait_for(running, 1)


@each_route
async def test_too_long_is_a_504_or_the_end_of_a_stream(engine, tokenizer, path, body):
    engine.script = None
    app = create_app(engine, tokenizer, build({"request_timeout": 0.5}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.post(path, json=body)
        assert response.status_code == 504
        kind = "server_error" if path == "/v1/responses" else "timeout_error"
        assert response.json()["error"]["type"] == kind
        response = await client.post(path, json={**body, "stream": True})
    assert response.status_code == 200
    told = [event for event in events_of(response.text) if event["type"] == "error"]
    assert [event["error"]["type"] for event in told] == [kind]
    assert all(stream.aborted.is_set() for stream in engine.streams)


@each_route
async def test_they_are_counted_and_logged(api, app, path, body, caplog):
    caplog.set_level(logging.INFO)
    for stream in (False, True):
        assert (await api.client.post(path, json={**body, "stream": stream})).status_code == 200
    assert (await api.client.post(path, json={})).status_code == 400
    figures = (await api.client.get("/metrics")).text.splitlines()
    assert f'unmask_http_responses_total{{code="2xx",handler="{path}",model_name="fake"}} 2.0' in figures
    assert f'unmask_http_responses_total{{code="4xx",handler="{path}",model_name="fake"}} 1.0' in figures
    assert next(line for line in figures if line.startswith("unmask_generation_tokens_total{")).endswith(" 14.0")
    assert [record.message for record in caplog.records].count("request") == 2


@each_route
async def test_two_keys_share_nothing(engine, tokenizer, path, body):
    app = create_app(engine, tokenizer, build({"api_key": ["one", "two"]}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for headers in ({"x-api-key": "one"}, {"authorization": "Bearer one"}, {"x-api-key": "two"}):
            assert (await client.post(path, json=body, headers=headers)).status_code == 200
        await client.post(path, json={**body, "cache_salt": "a"}, headers={"x-api-key": "one"})
    salts = [submission.cache_salt for submission in engine.submissions]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 3
