"""nginx with the shipped configuration in front of two real servers, which are restarted under load."""

import asyncio
import json
import re
import socket
import subprocess
from contextlib import AsyncExitStack, ExitStack

import httpx
import pytest

from server.settings.tree import ServerConfig
from tests.forked import Forked, wait_until_ready

from .conftest import DOCKER

LENGTHS = (32, 64, 96)


@pytest.fixture
def front(tool, free_port, background, tmp_path):
    """Starts the shipped nginx in front of these ports; the URL it listens at."""
    with ExitStack() as stack:

        def start(*ports):
            stack.close()  # the one before
            upstream = (DOCKER / "nginx" / "upstream-two.conf").read_text()
            for container, port in zip(re.findall(r"[\d.]+:8000", upstream), ports, strict=True):
                upstream = upstream.replace(container, f"127.0.0.1:{port}")
            listen = free_port()
            config = (DOCKER / "nginx" / "nginx.conf").read_text()
            for old, new in {
                "listen 8080": f"listen 127.0.0.1:{listen}",
                " /tmp/": f" {tmp_path}/",
                "/dev/stdout": f"{tmp_path}/access.log",
                "/dev/stderr": f"{tmp_path}/error.log",
            }.items():
                assert old in config
                config = config.replace(old, new)
            (tmp_path / "nginx.conf").write_text(config)
            (tmp_path / "upstream.conf").write_text(upstream)
            command = [tool("nginx"), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
            subprocess.run([*command, "-t"], check=True)
            url = f"http://127.0.0.1:{listen}"
            stack.enter_context(background([*command, "-g", "daemon off;"], f"{url}/ready", tmp_path / "nginx.log"))
            return url

        yield start


@pytest.fixture
def restartable(llada_tiny, free_port, tmp_path):
    """Starts a server on a port of its own: (port, restart), where `restart` drains it and waits for the next one."""
    with ExitStack() as lives:

        def start():
            port = free_port()
            flags = ["serve", str(llada_tiny), "--port", str(port)]
            flags += ["--max-running-requests", "4", "--log-level", "warning"]

            def begin():
                log = tmp_path / f"server-{port}.log"
                process = lives.enter_context(Forked("server.cli", *flags, log=log))
                wait_until_ready(process, f"http://127.0.0.1:{port}/ready", log, 60)
                return process

            process = begin()

            def restart():
                nonlocal process
                process.terminate()
                assert process.wait(timeout=60) == 0
                process = begin()

            return port, restart

        yield start


async def ask(client, number):
    """One request, whole or streamed, read to its end; its text."""
    length = LENGTHS[number % len(LENGTHS)]
    body = {"prompt": [5, 6, 7], "max_tokens": length, "stream": bool(number % 2), "ignore_eos": True}
    body["diffusion"] = {"unmask": "fixed", "steps": length}
    if not body["stream"]:
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]
    text, last = "", ""
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
            last = line or last
    assert last == "data: [DONE]"
    return text


@pytest.mark.slow
async def test_a_rolling_restart_loses_no_request(front, restartable):
    """Eight clients ask all the while; every answer is whole, and the same as before the restarts."""
    ports, restarts = zip(*[await asyncio.to_thread(restartable) for _ in range(2)], strict=True)
    url = await asyncio.to_thread(front, *ports)
    over, answered, during = asyncio.Event(), 0, []
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        expected = [await ask(http, number) for number in range(6)]

        async def client(number):
            nonlocal answered
            while not over.is_set():
                assert await ask(http, number) == expected[number % 6]
                answered += 1
                number += 1

        async def roll():
            for restart in restarts:
                before = answered
                await asyncio.to_thread(restart)
                during.append(answered - before)
                await asyncio.sleep(4)  # as the manual says: until nginx asks the new one again
            over.set()

        await asyncio.gather(roll(), *map(client, range(8)))
    assert min(during) > 5, "the restarts should have been under load"


READY = "GET /ready"
REFUSES = b"HTTP/1.1 503 X\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbusy"
ANSWERS = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\nfine"
DIES = b""


@pytest.fixture
async def upstream():
    """`port, seen = await upstream(reply)`: a server that says this to all but /ready; `seen` is what it was asked."""
    async with AsyncExitStack() as stack:

        async def start(reply):
            seen = []

            async def talk(reader, writer):
                line = (await reader.readuntil(b"\r\n\r\n")).split(b" HTTP")[0].decode()
                seen.append(line)
                writer.write(ANSWERS if line == READY else reply)
                if line != READY and reply is DIES:
                    writer.transport.abort()
                await writer.drain()
                writer.close()

            server = await stack.enter_async_context(await asyncio.start_server(talk, "127.0.0.1", 0))
            return server.sockets[0].getsockname()[1], seen

        yield start


def error_of(answer, status):
    """Of nginx's own making, in OpenAI's form."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return error["message"]


async def asked(front, *ports, method="POST", path="/v1/completions", times=1, **options):
    """What nginx in front of these ports answers, request by request."""
    url = await asyncio.to_thread(front, *ports)
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        return [await client.request(method, path, **options) for _ in range(times)]


@pytest.mark.slow
async def test_a_post_that_a_server_may_have_begun_is_sent_to_no_other(front, upstream):
    first, second = await upstream(DIES), await upstream(DIES)
    [answer] = await asked(front, first[0], second[0], json={})
    assert "has gone" in error_of(answer, 502)
    assert answer.headers["retry-after"] == "1"
    assert (first[1] + second[1]).count("POST /v1/completions") == 1


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1])
async def test_a_post_that_none_has_begun_is_sent_to_the_next(front, upstream, free_port, order):
    """One that is refused with 503, and one that finds nobody there."""
    healthy, seen = await upstream(ANSWERS)
    refusing, refused = await upstream(REFUSES)
    for other in (refusing, free_port()):
        answers = await asked(front, *[healthy, other][::order], json={}, times=4)
        assert [answer.text for answer in answers] == ["fine"] * 4
    assert refused.count("POST /v1/completions") == 1, "and a second time only once a second has passed"
    assert seen.count("POST /v1/completions") == 8


@pytest.mark.slow
async def test_with_nobody_there_it_says_so(front, upstream, free_port):
    """Where one has died of a request, its client is told so; the next ones may come again."""
    dead, _ = await upstream(DIES)
    url = await asyncio.to_thread(front, dead, free_port())
    async with httpx.AsyncClient(base_url=url) as client:
        assert "has gone" in error_of(await client.post("/v1/completions", json={}), 502)
        for _ in range(2):
            answer = await client.post("/v1/completions", json={})
            assert "try again" in error_of(answer, 503)
            assert answer.headers["retry-after"] == "1"


@pytest.fixture
async def leave(front):
    """`await leave(count, silent)`: the URL of nginx in front of so many servers that were ready and are gone.

    A silent one has taken its address along: nobody even refuses.
    """
    with ExitStack() as stack:

        async def start(count, silent):
            async def talk(reader, writer):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(ANSWERS)
                await writer.drain()
                writer.close()

            servers = [await asyncio.start_server(talk, "127.0.0.1", 0) for _ in range(count)]
            ports = [server.sockets[0].getsockname()[1] for server in servers]
            url = await asyncio.to_thread(front, *(ports * 2)[:2])
            for server, port in zip(servers, ports, strict=True):
                server.close()
                await server.wait_closed()
                if silent:  # whoever has no place in a full backlog is not answered
                    deaf = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=0))
                    stack.enter_context(socket.create_connection(deaf.getsockname()))
            return url

        yield start


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("silent", [False, True])
async def test_servers_that_are_gone_are_a_503(leave, count, silent):
    async with httpx.AsyncClient(base_url=await leave(count, silent)) as client:
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models")):
            answer = await client.request(method, path)
            assert "try again" in error_of(answer, 503)
            assert answer.headers["retry-after"] == "1"


@pytest.mark.slow
async def test_nginx_answers_in_openais_form(front, upstream):
    port, _ = await upstream(ANSWERS)
    url = await asyncio.to_thread(front, port, port)
    async with httpx.AsyncClient(base_url=url) as client:
        assert "4 MiB" in error_of(await client.post("/v1/completions", content=b"x" * (5 << 20)), 413)
        error_of(await client.get("/v1/" + "x" * 40_000), 414)
        error_of(await client.get("/v1/models", headers={"x": "y" * 40_000}), 400)
        error_of(await client.get("/metrics"), 404)
        error_of(await client.post("/"), 404)
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
    writer.write(b"nonsense\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b"application/json" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.slow
async def test_what_a_server_says_passes_as_it_is(front, upstream):
    for status in (400, 404, 413, 429, 500, 504):
        port, _ = await upstream(ANSWERS.replace(b"200 OK", b"%d X" % status))
        [answer] = await asked(front, port, port, json={})
        assert (answer.status_code, answer.text) == (status, "fine")


def test_nginx_keeps_connections_for_less_time_than_the_server():
    config = (DOCKER / "nginx" / "nginx.conf").read_text()
    upstream = config[config.index("upstream unmask") : config.index("server {")]
    assert int(re.search(r"keepalive_timeout (\d+)s;", upstream)[1]) < ServerConfig().keep_alive_timeout


@pytest.mark.slow
async def test_blocks_pass_as_they_come_and_the_rest_stays_inside(front, golden_server):
    port = httpx.URL(golden_server).port
    url = await asyncio.to_thread(front, port, port)
    body = {"prompt": [5], "max_tokens": 512, "stream": True, "ignore_eos": True}
    body["diffusion"] = {"unmask": "fixed", "steps": 512}
    loop = asyncio.get_running_loop()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        times, begun = [], loop.time()
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    times.append(loop.time())
        assert len(times) == 16
        assert times[-1] - times[0] > (times[-1] - begun) / 2, "they should not come in one lump at the end"
        for path in ("/metrics", "/health", "/docs", "/openapi.json"):
            answer = await client.get(path)
            assert answer.status_code == 404
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert (await client.get("/v1/models")).status_code == 200


def test_both_upstream_files_name_what_compose_gives_out():
    two = (DOCKER / "nginx" / "upstream-two.conf").read_text()
    one = (DOCKER / "nginx" / "upstream-one.conf").read_text()
    addresses = re.findall(r"^server ([\d.]+):8000", two, re.MULTILINE)
    assert re.findall(r"^server ([\d.]+):8000", one, re.MULTILINE) == addresses[:1]
    composed = (DOCKER / "compose.yaml").read_text() + (DOCKER / "compose.two.yaml").read_text()
    assert re.findall(r"ipv4_address: ([\d.]+)", composed) == addresses
