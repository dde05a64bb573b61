"""What becomes of requests whose replicas die or refuse: real apps around fake engines, cut off where a test says."""

import asyncio
import json
from contextlib import aclosing

import httpx
import pytest
from starlette.applications import Starlette

from engine import QueueFull
from server.http.app import create_app, guard
from server.ray.exchange import exchange
from server.ray.relay.fleet import ReplicaDied, ReplicaState
from server.ray.relay.relay import ATTEMPTS, Relay
from server.settings.tree import build

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
BODIES = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 64},
    RESPONSES: {"input": "hi", "max_output_tokens": 64},
    MESSAGES: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 64, "model": "fake"},
}
SETTINGS = {"served_model_name": ["fake"], "max_body_bytes": 4096, "page": False}


class Fleet:
    """Replicas `a`, `b`, … of one app. `lives`: for each request in turn, the body messages after which it dies."""

    def __init__(self, app):
        self.app = app
        self.lives = []
        self.asked = []
        self.closed = 0
        self.refusing = {}
        self.told = [state("a"), state("b")]

    async def answer(self, key, tried, scope, body):
        self.asked.append((key, tried, scope, body))
        names = [told.replica for told in self.told]
        replica = next((name for name in names if name not in tried), names[0])
        left = self.lives.pop(0) if self.lives else None
        try:
            if error := self.refusing.get(replica):
                start = {"type": "http.response.start", "status": error, "headers": [], "replica": replica}
                yield start
                yield {"type": "http.response.body", "body": replica.encode()}
                return
            async with aclosing(exchange(self.app, scope, body)) as messages:
                async for message in messages:
                    if left == 0:
                        raise ReplicaDied
                    if message["type"] == "http.response.start":
                        yield {**message, "replica": replica}
                        continue
                    left = None if left is None else left - 1
                    yield message
                    if left == 0:
                        raise ReplicaDied
        finally:
            self.closed += 1

    async def states(self, *, with_metrics):
        return self.told


def state(replica, **given):
    facts = {"is_healthy": True, "is_accepting": True, "load": 2, "metrics": "# TYPE m gauge\nm 1.0\n", **given}
    return ReplicaState(replica=replica, **facts)


@pytest.fixture
def fleet(engine, tokenizer):
    return Fleet(create_app(engine, tokenizer, build(SETTINGS)))


@pytest.fixture
def relay(fleet):
    return Relay(fleet)


@pytest.fixture
def ingress(relay):
    """`ingress(**settings)`: a client of the relay behind its guards."""

    def make(**settings):
        app = Starlette()
        app.router.default = relay
        guard(app, build({**SETTINGS, **settings}).server, frozenset())
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    return make


def events(text):
    """(name, data) of each event but signs of life."""
    found = []
    for frame in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in frame.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields.get("event"), fields["data"]))
    return found


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_passes_unchanged(ingress, fleet, path, stream):
    async with (
        ingress() as client,
        httpx.AsyncClient(transport=httpx.ASGITransport(fleet.app), base_url="http://test") as alone,
    ):
        body = {**BODIES[path], "stream": stream}
        found, expected = [await some.post(path, json=body) for some in (client, alone)]
    assert found.status_code == expected.status_code == 200
    assert found.headers.pop("x-unmask-replica") == "a"
    assert found.headers.keys() == expected.headers.keys()
    assert found.headers["content-type"] == expected.headers["content-type"]
    kinds = (
        [
            [(name, list(json.loads(data)) if data[0] == "{" else data) for name, data in events(answer.text)]
            for answer in (found, expected)
        ]
        if stream
        else [list(answer.json()) for answer in (found, expected)]
    )
    assert kinds[0] == kinds[1]


async def test_errors_pass_unchanged(ingress):
    async with ingress() as client:
        answer = await client.post(CHAT, json={**BODIES[CHAT], "max_tokens": -3}, headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")
        assert answer.headers["x-request-id"] == "mine"
        answer = await client.post(CHAT, content=b"{" * 65, headers={"content-type": "application/json"})
        assert "nests deeper" in answer.json()["error"]["message"]
        assert (await client.post(CHAT, content=b" " * 5000)).status_code == 413
        assert (await client.get("/nowhere")).status_code == 404
        assert (await client.put(CHAT)).headers["allow"] == "POST"


async def test_keys_are_asked_for_before_the_body_is_read(ingress, fleet):
    async with ingress(api_key="secret") as client:
        answer = await client.post(CHAT, content=b"{" * 65)
        assert (answer.status_code, fleet.asked) == (401, [])
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == 401
        await client.post(CHAT, json=BODIES[CHAT], headers={"x-api-key": "secret"})
        await client.post(CHAT, json=BODIES[CHAT], headers={"authorization": "Bearer secret"})
    keys = {key for key, *_ in fleet.asked}
    assert len(keys) == 1
    assert keys != {None}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_has_not_begun_comes_from_another_replica(ingress, fleet, path, stream):
    fleet.lives = [0, 0]
    async with ingress() as client:
        answer = await client.post(path, json={**BODIES[path], "stream": stream})
    assert answer.status_code == 200
    assert len(fleet.asked) == fleet.closed == 3
    assert "service_unavailable" not in answer.text


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_that_has_begun_ends_with_an_error_event(ingress, fleet, engine, path):
    engine.play = lambda stream: stream.put("one ")
    fleet.lives = [1]
    async with ingress() as client:
        answer = await client.post(path, json={**BODIES[path], "stream": True})
    assert answer.status_code == 200
    assert len(fleet.asked) == 1
    told = events(answer.text)
    if path == CHAT:
        assert told[-1] == (None, "[DONE]")
        assert json.loads(told[-2][1])["error"]["type"] == "service_unavailable_error"
        assert json.loads(told[-3][1])["choices"], "what came before is there"
    elif path == MESSAGES:
        assert told[0][0] == "message_start"
        [name, data] = told[-1]
        assert (name, json.loads(data)["error"]["type"]) == ("error", "overloaded_error")
        assert json.loads(data)["request_id"] == answer.headers["request-id"]
    else:
        parsed = [json.loads(data) for _, data in told]
        assert [event["sequence_number"] for event in parsed] == list(range(len(parsed)))
        assert [event["type"] for event in parsed] == [name for name, _ in told]
        assert [name for name, _ in told[-2:]] == ["error", "response.failed"]
        failed = parsed[-1]["response"]
        assert (failed["status"], failed["id"]) == ("failed", parsed[0]["response"]["id"])
        assert failed["error"]["message"] == parsed[-2]["message"]


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_that_is_complete_has_nothing_added(ingress, fleet, path):
    async with ingress() as client:
        whole = await client.post(path, json={**BODIES[path], "stream": True})
        sent = fleet.closed
        assert sent == 1
        count = 0
        async with aclosing(exchange(fleet.app, *_asked(fleet))) as messages:
            count = len([message async for message in messages if message.get("body")])
        fleet.lives = [count]
        cut = await client.post(path, json={**BODIES[path], "stream": True})
    assert [name for name, _ in events(cut.text)] == [name for name, _ in events(whole.text)]


def _asked(fleet):
    _, _, scope, body = fleet.asked[0]
    return scope, body


async def test_a_request_that_kills_replicas_does_not_kill_them_all(ingress, fleet):
    fleet.lives = [0] * 10
    async with ingress() as client:
        answer = await client.post(CHAT, json=BODIES[CHAT])
    assert (answer.status_code, len(fleet.asked)) == (503, ATTEMPTS)
    assert answer.headers["retry-after"]


@pytest.mark.parametrize("status", [429, 503])
async def test_a_refusal_is_taken_to_another_replica(ingress, fleet, status):
    fleet.refusing = {"a": status}
    async with ingress() as client:
        answer = await client.post(CHAT, json=BODIES[CHAT])
    assert (answer.status_code, answer.headers["x-unmask-replica"]) == (200, "b")
    assert [tried for _, tried, *_ in fleet.asked] == [(), ("a",)]


async def test_a_refusal_by_all_is_passed_on(ingress, fleet):
    fleet.refusing = {"a": 429, "b": 503}
    async with ingress() as client:
        answer = await client.post(CHAT, json=BODIES[CHAT])
    assert (answer.status_code, answer.text) == (429, "a")


async def test_a_full_queue_of_the_cluster_is_a_429(ingress, fleet):
    async def full(*_):
        raise QueueFull("Too many.")
        yield

    fleet.answer = full
    async with ingress() as client:
        assert (await client.post(CHAT, json=BODIES[CHAT])).status_code == 429


async def test_a_client_that_hangs_up_ends_its_request(relay, fleet, engine):
    engine.script = None
    body = json.dumps({**BODIES[CHAT], "stream": True}).encode()
    told = [{"type": "http.request", "body": body}]
    hung_up = asyncio.Event()

    async def receive():
        if told:
            return told.pop()
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "path": CHAT, "method": "POST", "headers": headers, "query_string": b"", "state": {}}
    running = asyncio.create_task(relay(scope, receive, send))
    async with asyncio.timeout(5):
        while not fleet.asked or not relay.unfinished:
            await asyncio.sleep(0.01)
        hung_up.set()
        await running
    assert (fleet.closed, relay.unfinished) == (1, 0)


async def test_what_is_asked_of_all_is_answered_for_all(ingress, fleet):
    async with ingress() as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.post("/ping")).status_code == 200
        assert (await client.head("/ready")).status_code == 200
        assert (await client.get("/load")).json() == {"server_load": 4}
        assert 'm{replica="a"} 1.0\nm{replica="b"} 1.0\n' in (await client.get("/metrics")).text
        fleet.told = [state("a", is_healthy=False), state("b", is_accepting=False)]
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 503
        fleet.told = []
        assert (await client.get("/health")).status_code == 503
    assert fleet.asked == []


async def test_a_relay_that_drains_takes_no_requests(ingress, relay, fleet):
    async with ingress() as client:
        relay.drain()
        assert (await client.post(CHAT, json=BODIES[CHAT])).status_code == 503
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200
    assert fleet.asked == []


async def test_an_answer_that_is_whole_is_asked_for_once(ingress, fleet, caplog):
    fleet.lives = [1]
    async with ingress() as client:
        answer = await client.post(CHAT, json=BODIES[CHAT])
    assert answer.json()["choices"]
    assert len(fleet.asked) == 1
    assert "failed" not in caplog.text


@pytest.mark.parametrize("path", ["/load", "/metrics", "/health", "/ready"])
async def test_replicas_of_which_nothing_is_known_are_not_idle(ingress, fleet, path):
    fleet.told = []
    async with ingress() as client:
        assert (await client.get(path)).status_code == 503


@pytest.mark.parametrize("path", ["/load", "/v1/chat/completions"])
async def test_websockets_are_closed(relay, path):
    sent = []

    async def send(message):
        sent.append(message)

    await relay({"type": "websocket", "path": path, "headers": []}, None, send)
    assert sent == [{"type": "websocket.close"}]
