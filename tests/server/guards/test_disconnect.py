"""A client that hangs up takes its requests out of the engine, at once and whatever it was waiting for."""

import asyncio
import json

import pytest


class Client:
    """Talks ASGI to the app by hand, so that it can hang up at any moment."""

    def __init__(self, app, path="/v1/completions", **body):
        self._app = app
        self._path = path
        self._body = json.dumps({"prompt": "ab", **body} if path == "/v1/completions" else body).encode()
        self._delivered = False
        self.hung_up = asyncio.Event()
        self.received = asyncio.Queue()

    async def run(self):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
        }
        await self._app(scope, self._receive, self.received.put)

    async def _receive(self):
        if not self._delivered:
            self._delivered = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.hung_up.wait()
        return {"type": "http.disconnect"}


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_aborts_every_choice(app, engine, stream):
    engine.script = None
    client = Client(app, prompt=["a", "b"], stream=stream)
    running = asyncio.create_task(client.run())
    await engine.submitted.wait()
    engine.streams[0].put("one ")
    await asyncio.sleep(0.01)
    assert not engine.streams[0].aborted.is_set()
    client.hung_up.set()
    await asyncio.wait_for(running, 1)
    assert all(stream.aborted.is_set() for stream in engine.streams)


async def test_hanging_up_before_the_first_block(app, engine):
    engine.script = None
    client = Client(app, stream=True)
    running = asyncio.create_task(client.run())
    await engine.submitted.wait()
    client.hung_up.set()
    await asyncio.wait_for(running, 1)
    assert engine.streams[0].aborted.is_set()


async def test_hanging_up_before_the_prompt_is_read(app, engine, tokenizer, monkeypatch):
    """Nobody reads for a client that has gone, though it waited behind others."""
    monkeypatch.setattr(tokenizer, "encode", lambda *_, **__: asyncio.Event().wait())
    client = Client(app)
    client.hung_up.set()
    await asyncio.wait_for(client.run(), 1)
    assert not engine.streams


async def test_a_cancelled_server_task_aborts_too(app, engine):
    engine.script = None
    running = asyncio.create_task(Client(app, stream=True).run())
    await engine.submitted.wait()
    await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running], timeout=1)
    assert engine.streams[0].aborted.is_set()


async def test_blocks_are_sent_as_they_come(app, engine):
    engine.script = None
    client = Client(app, stream=True)
    running = asyncio.create_task(client.run())
    await engine.submitted.wait()
    assert (await client.received.get())["type"] == "http.response.start"
    for word in ("one", "two"):
        engine.streams[0].put(word)
        event = (await asyncio.wait_for(client.received.get(), 1))["body"]
        assert json.loads(event.removeprefix(b"data: "))["choices"][0]["text"] == word
    client.hung_up.set()
    await running
