"""nginx with the shipped configuration in front of two real servers, which are restarted under load."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from contextlib import ExitStack

import httpx
import pytest

from .conftest import DOCKER

LENGTHS = (32, 64, 96)


@pytest.fixture
def front(tool, free_port, background, tmp_path):
    """Starts the shipped nginx in front of these ports; the URL it listens at."""
    with ExitStack() as stack:

        def start(*ports):
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
def restartable(llada_tiny, free_port, background, tmp_path):
    """Starts a server on a port of its own: (port, restart), where `restart` drains it and waits for the next one."""
    with ExitStack() as stack:

        def start():
            port = free_port()
            command = [sys.executable, "-m", "server.cli", "serve", str(llada_tiny), "--port", str(port)]
            command += ["--max-running-requests", "4", "--log-level", "warning"]
            lives = ExitStack()
            stack.callback(lives.close)

            def begin():
                ready = f"http://127.0.0.1:{port}/ready"
                return lives.enter_context(background(command, ready, tmp_path / f"server-{port}.log"))

            process = begin()

            def restart():
                nonlocal process
                process.send_signal(signal.SIGTERM)
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


@pytest.mark.slow
async def test_blocks_pass_as_they_come_and_the_rest_stays_inside(front, restartable):
    ports = [(await asyncio.to_thread(restartable))[0] for _ in range(2)]
    url = await asyncio.to_thread(front, *ports)
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
