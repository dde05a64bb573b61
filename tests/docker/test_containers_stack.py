"""The compose files, really run: what nginx, Prometheus and the server do together, and what they may not."""

import json
import os
import signal
import threading
import time

import httpx
import pytest

from .podman import call, end, inspect, podman, wait
from .prometheus import ask, load, unanswered
from .stack import Stack

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]
SERVICES = ("server", "nginx", "prometheus")
PROMPT = "Question: What is 2 plus 2?\nAnswer:"


@pytest.fixture(scope="module")
def stack(containers, tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        stack.up("server", "prometheus", "nginx")
        yield stack
    finally:
        stack.down()


@pytest.fixture
def client(stack):
    with stack.client() as client:
        yield client


def until(condition, what, seconds=240):
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last, what
        time.sleep(1)


def test_a_stream_comes_block_by_block(client):
    body = {"prompt": PROMPT, "max_tokens": 512, "stream": True, "ignore_eos": True}
    body["diffusion"] = {"unmask": "fixed", "steps": 512}
    times, begun = [], time.monotonic()
    with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                times.append(time.monotonic())
    assert len(times) == 16
    assert times[-1] - times[0] > (times[-1] - begun) / 2, "they should not come in one lump at the end"


def test_a_key_is_needed_and_the_right_one(client):
    body = {"prompt": PROMPT, "max_tokens": 8}
    assert client.post("/v1/completions", json=body).status_code == 200
    for headers in ({"authorization": ""}, {"authorization": "Bearer wrong"}):
        assert client.post("/v1/completions", json=body, headers=headers).status_code == 401


def test_only_the_api_is_outside(client):
    for path in ("/metrics", "/docs", "/health"):
        assert client.get(path).status_code == 404
    assert client.get("/ready").status_code == 200


def test_each_published_port_shows_its_service(stack):
    """What an operator sees in a browser."""
    assert "unmask_forwards_total" in httpx.get(f"{stack.url('server')}/metrics").text
    assert httpx.get(f"{stack.url('server')}/v1/models").status_code == 401
    assert "Prometheus" in httpx.get(f"{stack.url('prometheus')}/graph", follow_redirects=True).text


def targets(stack):
    found = httpx.get(f"{stack.url('prometheus')}/api/v1/targets").json()["data"]["activeTargets"]
    return {target["discoveredLabels"]["__address__"]: target["health"] for target in found}


def test_prometheus_scrapes_the_server_at_its_address(stack):
    until(lambda: targets(stack) == {"172.30.77.11:8000": "up"}, "the server is no target that is up")
    rules = httpx.get(f"{stack.url('prometheus')}/api/v1/rules").json()["data"]["groups"]
    until(lambda: ask(stack.url("prometheus"), "up") == [1.0], "nor says `up` so")
    assert sum(len(group["rules"]) for group in rules) > 15


def test_every_panel_has_data(stack, panels):
    stop = threading.Event()

    def ask_on():
        with stack.client() as client:
            load(client, stop)

    clients = [threading.Thread(target=ask_on) for _ in range(2)]
    for thread in clients:
        thread.start()
    queries = [(f"{title}: {expression}", expression) for title, expression in panels]
    try:
        url = stack.url("prometheus")
        until(lambda: not unanswered(url, queries, "demo"), "some stay without data", seconds=120)
    finally:
        stop.set()
        for thread in clients:
            thread.join()


@pytest.mark.parametrize("service", SERVICES)
def test_nobody_has_rights_to_lose(stack, service):
    told = inspect(stack.name(service))
    assert told["HostConfig"]["ReadonlyRootfs"]
    assert not told["EffectiveCaps"]
    _, status = call("exec", stack.name(service), "cat", "/proc/1/status")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert fields["Uid"].split()[0] != "0"
    assert fields["NoNewPrivs"].strip() == "1"
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        assert int(fields[kind], 16) == 0


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_is_written_but_in_volumes(stack, service):
    for folder in ("/", "/etc", "/usr", "/var", "/opt"):
        written, said = call("exec", stack.name(service), "touch", f"{folder}/x")
        assert not written
        assert "Read-only" in said or "Permission" in said
    assert call("exec", stack.name(service), "touch", "/tmp/x")[0]
    mounts = [mount["Destination"] for mount in inspect(stack.name(service))["Mounts"]]
    changes = [line.split()[1] for line in podman("diff", stack.name(service)).splitlines()]
    places = (*mounts, "/tmp", "/etc", "/run", "/dev", "/proc", "/sys")  # the rest are mount points of podman's own
    assert not [
        path
        for path in changes
        if not any(f"{place}/".startswith(f"{path}/") or path.startswith(f"{place}/") for place in places)
    ]


def test_the_key_is_nowhere_to_be_read(stack, client):
    assert client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 8}).status_code == 200
    for service in SERVICES:
        assert stack.key not in json.dumps(inspect(stack.name(service))), service
        assert stack.key not in podman("logs", stack.name(service)), service


def test_a_server_that_dies_is_started_again(stack, client):
    before = inspect(stack.name("server"))["State"]
    os.kill(before["Pid"], signal.SIGKILL)
    until(lambda: inspect(stack.name("server"))["State"]["Pid"] not in (0, before["Pid"]), "it stays dead")
    wait(stack.name("server"))
    assert client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 8}).status_code == 200


def alerts(stack):
    found = httpx.get(f"{stack.url('prometheus')}/api/v1/alerts").json()["data"]["alerts"]
    return {alert["labels"]["alertname"]: alert["state"] for alert in found}


def test_one_that_is_gone_raises_the_alarm_until_it_is_back(stack, client):
    end(stack.name("server"))
    answer = client.post("/v1/completions", json={"prompt": PROMPT})
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["error"]["type"] == "server_error"
    until(lambda: alerts(stack).get("UnmaskDown") == "firing", "nobody is told")
    podman("start", stack.name("server"))
    wait(stack.name("server"))
    until(lambda: "UnmaskDown" not in alerts(stack), "it never ends")
    wait(stack.name("nginx"))  # podman gives the address to another card, which nginx' host learns in seconds
    assert client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 8}).status_code == 200


def test_two_servers_are_renewed_under_load_and_nothing_is_lost(stack):
    stack.widen()
    over, answered, faults = threading.Event(), [], []

    def ask_on(number):
        body = {"prompt": PROMPT, "max_tokens": 64, "ignore_eos": True, "stream": bool(number % 2)}
        with stack.client() as client:
            while not over.is_set():
                answer = client.post("/v1/completions", json=body)
                ended = answer.text.endswith("data: [DONE]\n\n") if body["stream"] else "choices" in answer.text
                (answered if answer.status_code == 200 and ended else faults).append(answer.text)

    clients = [threading.Thread(target=ask_on, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    try:
        for service in ("server", "server-b"):
            before = len(answered)
            stack.renew(service)
            assert len(answered) > before, "it should have been under load"
            time.sleep(5)  # as the manual says
    finally:
        over.set()
        for thread in clients:
            thread.join()
    assert not faults


def test_all_end_in_their_time(stack):
    """None is killed, also not while it answers."""
    for service in ("nginx", "server", "server-b", "prometheus"):
        end(stack.name(service))
    stack.down()
    assert not podman("ps", "--all", "--quiet")
