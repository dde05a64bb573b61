"""A real cluster of two replicas under `unmask serve --ray`: what clients notice of it, and of its parts that end.

RAY_SECONDS sets how long the replicas are under load at least, 10 unless it says otherwise. From 120 on there are 64
clients that do not pause, before that 8 that do: most of the test's time is that of processes which start.
"""

import asyncio
import json
import os
import re
import secrets
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = float(os.environ.get("RAY_SECONDS", "10"))
NUM_CLIENTS, PAUSE = (64, 0.0) if SECONDS >= 120 else (8, 2.0)
KINDS = 4
"""Different sets of requests; each client has one of them."""
LONGEST = 300
"""Seconds that no answer takes: replicas that are rolled over get as long to finish theirs."""
KEY = "cluster-test-key"
HEADERS = {"authorization": f"Bearer {KEY}"}
PATIENT = httpx.Timeout(float(LONGEST))
CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
REPLICA = re.compile(r"ServeReplica:unmask:EngineReplica|#EngineReplica#")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The cluster's settings file."""
    path = tmp_path_factory.mktemp("ray") / "settings.yaml"
    write(path, served_model_name=["before"])
    return path


def write(path, **given):
    fixed = {"model": "demo-block", "ray": True, "ray_replicas": 2, "api_key": [KEY], "shutdown_timeout": LONGEST}
    path.write_text(yaml.safe_dump({**fixed, **given}))


@pytest.fixture(scope="module")
def cluster(serve, settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray would write one into the home directory
        with serve("--config", str(settings), seconds=300, is_forked=False) as url:
            with httpx.Client(base_url=url, headers=HEADERS) as client:
                while len(names(client)) < 2:  # it is ready with one
                    time.sleep(0.2)
            yield url


@pytest.fixture
def client(cluster):
    with httpx.Client(base_url=cluster, headers=HEADERS, timeout=PATIENT) as client:
        yield client


def chat(*said, **fields):
    roles = ["user", "assistant"] * len(said)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, said, strict=False)], "seed": 1, **fields}


def processes(above):
    """Ids of the processes below this one that run replicas."""
    parents, replicas = {}, set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid = int(stat.parent.name)
            parents[pid] = int(stat.read_text().rpartition(")")[2].split()[1])
            if REPLICA.search(stat.with_name("cmdline").read_text()):
                replicas.add(pid)

    def is_below(pid):
        while pid in parents:
            pid = parents[pid]
            if pid == above:
                return True
        return False

    return {pid for pid in replicas if is_below(pid)}


def names(client):
    """The replicas that tell of themselves."""
    return set(re.findall(r'^unmask_requests_running\{.*replica="(\w+)"\}', client.get("/metrics").text, re.M))


def test_requests_pass_as_if_there_were_one_server(client):
    assert httpx.get(f"{client.base_url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{client.base_url}/v1/models").status_code == 401
    wrong = client.post(COMPLETIONS, json={"prompt": "x", "max_tokens": -3}, headers={"x-request-id": "mine"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "max_tokens")
    assert wrong.headers.get_list("x-request-id") == ["mine"]
    assert client.post(COMPLETIONS, content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert client.get("/nowhere").status_code == 404
    assert len(names(client)) == 2
    body = {"model": "before", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    for path, given in {CHAT: body, MESSAGES: body, RESPONSES: {"input": "Hello", "max_output_tokens": 32}}.items():
        whole = client.post(path, json=given)
        assert whole.status_code == 200, whole.text
        with client.stream("POST", path, json={**given, "stream": True}) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert "data: " in "".join(stream.iter_text())


def test_a_second_turn_lands_where_its_prefix_is(client):
    homes = Counter()
    for number in range(12):
        first = chat(f"Question {number}: sort these numbers: 7 3 12 5 {number} 9 40 22 31 8 2 17 6 11.", max_tokens=64)
        answer = client.post(CHAT, json=first)
        said = answer.json()["choices"][0]["message"]["content"]
        asked = first["messages"][0]["content"]
        again = client.post(CHAT, json=chat(asked, said, "And now backwards.", max_tokens=32))
        assert again.headers["x-unmask-replica"] == answer.headers["x-unmask-replica"]
        assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        homes[again.headers["x-unmask-replica"]] += 1
    assert len(homes) == 2, "conversations are spread"


def test_a_prompt_cache_key_names_a_home(client):
    homes = {
        client.post(CHAT, json=chat(f"Hello {number}", prompt_cache_key="k", max_tokens=8)).headers["x-unmask-replica"]
        for number in range(8)
    }
    assert len(homes) == 1


def test_a_client_that_hangs_up_ends_its_request(client):
    body = {"prompt": "Tell me a story.", "max_tokens": 400, "ignore_eos": True, "stream": True, "n": 8}
    with client.stream("POST", COMPLETIONS, json=body) as stream:
        next(stream.iter_lines())
    ends = time.monotonic() + 60
    while client.get("/load").json()["server_load"]:
        assert time.monotonic() < ends
        time.sleep(0.1)
    figures = client.get("/metrics").text
    assert sum(map(float, re.findall(r'^unmask_requests_finished_total\{.*"abort".*\} (.*)', figures, re.M))) == 8


class Caller:
    """One of many clients; counts what became of its requests."""

    def __init__(self, http, number, expected):
        self.http = http
        self.number = number % KINDS
        self.expected = expected
        self.outcomes = Counter()
        self.broken = Counter()
        """Streams that ended with an error event, by the replica that wrote them."""

    async def call_until(self, over):
        while not over.is_set():
            for path, body in kinds(self.number):
                await self.call(path, body)
                await asyncio.sleep(PAUSE)

    async def call(self, path, body):
        kind = "stream" if body.get("stream") else "whole"
        async with self.http.stream("POST", path, json=body) as answer:
            text = "".join([piece async for piece in answer.aiter_text()])
        assert answer.status_code == 200, (answer.status_code, text)
        if kind == "whole":
            assert said(path, json.loads(text)) == self.expected[path, self.number]
            self.outcomes["whole"] += 1
            return
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        if any("error" in event for event in events):
            assert "has ended" in text, text
            assert text.endswith("data: [DONE]\n\n")
            self.outcomes["error event"] += 1
            self.broken[answer.headers["x-unmask-replica"]] += 1
        else:
            assert text.endswith("data: [DONE]\n\n")
            streamed = "".join(event["choices"][0]["text"] for event in events)
            assert streamed == self.expected[path, self.number]
            self.outcomes["stream"] += 1


def kinds(number):
    prompt = f"Question: Sort these numbers: 7 {number} 12 5.\nAnswer:"
    yield COMPLETIONS, {"prompt": prompt, "max_tokens": 64, "ignore_eos": True, "stream": True}
    yield CHAT, chat(f"Sort these numbers: {number} 31 4 8", max_tokens=24)
    yield COMPLETIONS, {"prompt": prompt, "max_tokens": 64, "ignore_eos": True}


def said(path, answer):
    [choice] = answer["choices"]
    return choice["message"]["content"] if path == CHAT else choice["text"]


async def test_nothing_is_lost_but_what_a_killed_replica_had_begun_to_say(cluster, client, settings):
    expected = {
        (path, number): said(path, client.post(path, json=body).json())
        for number in range(KINDS)
        for path, body in kinds(number)
        if not body.get("stream")
    }
    first = names(client)
    limits = httpx.Limits(max_connections=None)
    over, started = asyncio.Event(), time.monotonic()
    async with httpx.AsyncClient(base_url=cluster, headers=HEADERS, timeout=PATIENT, limits=limits) as http:
        callers = [Caller(http, number, expected) for number in range(NUM_CLIENTS)]
        running = [asyncio.create_task(caller.call_until(over)) for caller in callers]
        await asyncio.sleep(SECONDS / 4)
        os.kill(min(processes(cluster.pid)), signal.SIGKILL)
        second = await until(http, lambda found: len(found) == 2 and found != first)
        [killed] = first - second
        write(settings, served_model_name=["after", "before"])
        os.kill(cluster.pid, signal.SIGHUP)
        third = await until(http, lambda found: len(found) == 2 and not found & second)
        await asyncio.sleep(max(0, SECONDS - (time.monotonic() - started)))
        over.set()
        await asyncio.gather(*running)
        models = (await http.get("/v1/models")).json()["data"]
    outcomes = sum((caller.outcomes for caller in callers), Counter())
    broken = sum((caller.broken for caller in callers), Counter())
    print(f"{time.monotonic() - started:.0f} s under load: {dict(outcomes)}; {first} -> {second} -> {third}")
    assert set(broken) <= {killed}
    assert broken[killed] == outcomes["error event"]
    assert outcomes["stream"] > NUM_CLIENTS
    assert outcomes["whole"] > NUM_CLIENTS
    assert [model["id"] for model in models] == ["after", "before"]


async def until(http, holds):
    """The replicas, once these are as they should be."""
    async with asyncio.timeout(300):
        while True:
            text = (await http.get("/metrics")).text
            found = set(re.findall(r'^unmask_requests_running\{.*replica="(\w+)"\}', text, re.M))
            if holds(found):
                return found
            await asyncio.sleep(0.5)
