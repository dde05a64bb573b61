"""Everything at once, for a while: clients of every kind, among them rude ones, and an engine that fails on purpose.

What must hold in the end: every healthy request got the answer that it gets alone, no page is held, no memory is lost,
and the server is healthy. CHAOS_SECONDS sets how long, 20 unless it says otherwise.
"""

import asyncio
import json
import os
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.faulty_server import FAULT, OUT_OF_MEMORY, faulty_server

SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
NUM_CLIENTS = 32
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def kinds():
    """Every kind of healthy request: (path, body). Streamed ones are told by their bodies."""
    prompt, diffusion = [5, 6, 7, 8, 9], {"block_length": 8}
    plain = {"prompt": prompt, "max_tokens": 32, "diffusion": diffusion}
    drawn = {**plain, "temperature": 0.8, "top_p": 0.9, "seed": 4}
    for stream in (False, True):
        for cache in ("none", "prefix", "dual"):
            yield COMPLETIONS, {**plain, "stream": stream, "diffusion": {**diffusion, "cache": cache}}
        for lookahead in (None, 0, 8):
            bounded = {**diffusion, "lookahead": lookahead, "cache": "window"}
            yield COMPLETIONS, {**plain, "max_tokens": 64, "stream": stream, "diffusion": bounded}
        yield COMPLETIONS, {**drawn, "stream": stream}
        yield COMPLETIONS, {**drawn, "stream": stream, "n": 3}
        yield COMPLETIONS, {**plain, "stream": stream, "logprobs": 2}
        yield COMPLETIONS, {**plain, "stream": stream, "suffix": "t9 t8"}
        yield COMPLETIONS, {"prompt": "t5 <|fill:9|> t7 <|fill:5|>", "stream": stream, "diffusion": diffusion}
        yield CHAT, {"messages": [{"role": "user", "content": "t5 t6"}], "max_tokens": 24, "stream": stream}
        yield (
            CHAT,
            {"messages": [{"role": "user", "content": "t7"}], "max_tokens": 24, "stream": stream, "n": 2, "seed": 1},
        )
    yield COMPLETIONS, {"prompt": "t5 t6 t7", "max_tokens": 16, "echo": True}
    yield COMPLETIONS, {**plain, "prompt": "t5 t6 t7", "max_tokens": 1, "echo": True, "logprobs": 1}
    yield COMPLETIONS, {**plain, "prompt": [prompt, [11, 12], [13]]}
    yield COMPLETIONS, {**plain, "max_tokens": 64, "temperature": 1.0, "top_k": 20, "seed": 5, "presence_penalty": 0.5}
    yield COMPLETIONS, {**plain, "max_tokens": 40, "diffusion": {**diffusion, "unmask": "fixed", "steps": 20}}
    yield COMPLETIONS, {**plain, "stop": "t1", "stream": True}


MALFORMED = [
    b"",
    b"{",
    b"[" * 10_000,
    b'{"prompt": NaN}',
    b'{"prompt": "\xff"}',
    b'{"prompt": 5}',
    b'{"max_tokens": 5}',
    b"null",
]


def marked(mark):
    return {"prompt": [*mark, 5, 6], "max_tokens": 16, "seed": 1, "diffusion": {"block_length": 8}}


class Client:
    """One of many; counts what became of its requests."""

    def __init__(self, http, expected, seed):
        self.http = http
        self.expected = expected
        self.rng = random.Random(seed)
        self.outcomes = Counter()

    async def run(self, seconds):
        """Until the time is over, with at least one request of each sort."""
        sorts = [self.healthy, self.healthy, self.healthy, self.hang_up, self.malformed, self.faulty]
        end = asyncio.get_running_loop().time() + seconds
        for sort in self.rng.sample(sorts, len(sorts)):
            await sort()
        while asyncio.get_running_loop().time() < end:
            await self.rng.choice(sorts)()

    async def healthy(self):
        path, body, expected = self.rng.choice(self.expected)
        status, choices = await ask(self.http, path, body)
        if status == 429:
            self.outcomes["refused"] += 1
            await asyncio.sleep(self.rng.random())
            return
        assert status == 200, (path, body)
        assert alike(choices, expected), (path, body)
        self.outcomes["answered"] += 1

    async def hang_up(self):
        body = {
            "prompt": [5, 6, 7],
            "max_tokens": 128,
            "stream": self.rng.random() < 0.5,
            "diffusion": {"block_length": 8},
        }
        with suppress(httpx.TimeoutException):
            timeout = self.rng.choice([0.01, 0.05, 0.2])
            async with self.http.stream("POST", COMPLETIONS, json=body, timeout=timeout) as response:
                async for _ in response.aiter_bytes():
                    break
        self.outcomes["hung up"] += 1

    async def malformed(self):
        response = await self.http.post(COMPLETIONS, content=self.rng.choice(MALFORMED), headers=JSON)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["message"]
        self.outcomes["malformed"] += 1

    async def faulty(self):
        response = await self.http.post(COMPLETIONS, json=marked(FAULT))
        assert response.status_code in (500, 429), response.text
        if response.status_code == 500:
            assert response.headers["x-request-id"] in response.json()["error"]["message"]
            assert "injected" not in response.text
            self.outcomes["failed"] += 1


async def ask(http, path, body):
    """(status, what the choices say): of a stream, its pieces put together."""
    if not body.get("stream"):
        response = await http.post(path, json=body)
        return response.status_code, told(response.json().get("choices", []))
    async with http.stream("POST", path, json=body) as response:
        events = [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: ")]
    if response.status_code != 200:
        return response.status_code, []
    assert events.pop() == "[DONE]"
    return 200, told(choice for event in events for choice in json.loads(event)["choices"])


def told(choices):
    """Text, log-probabilities and the reason for the end of each choice, by its index."""
    whole = {}
    for choice in choices:
        text, logprobs, _ = whole.get(choice["index"], ("", [], None))
        said = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
        found = choice.get("logprobs") or {}
        logprobs = [*logprobs, *(found.get("token_logprobs") or found.get("content") or [])]
        whole[choice["index"]] = (text + (said.get("content") or ""), logprobs, choice["finish_reason"])
    return whole


def alike(choices, expected):
    """The same, but for the last digits of log-probabilities: sums of other batches come in another order."""
    return choices.keys() == expected.keys() and all(
        (text, reason) == (expected[index][0], expected[index][2])
        and logprobs == pytest.approx(expected[index][1], abs=1e-3)
        for index, (text, logprobs, reason) in choices.items()
    )


async def gauge(http, name):
    lines = (await http.get("/metrics")).text.splitlines()
    [value] = [line.split()[-1] for line in lines if line.startswith(f"unmask_{name}{{")]
    return float(value)


async def settled(http):
    """Waits until nobody is left in the engine."""
    async with asyncio.timeout(20):
        while any([await gauge(http, name) for name in ("kv_pages_used", "requests_running", "requests_waiting")]):
            await asyncio.sleep(0.05)


def resident_bytes(process):
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 180)
async def test_chaos(llada_tiny, tmp_path):
    limits = httpx.Limits(max_connections=None)
    small_pool = ("--max-running-requests", "16", "--max-model-len", "256", "--kv-cache-tokens", "1024")
    with faulty_server(llada_tiny, tmp_path / "log", *small_pool) as (url, process):
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
            expected = []
            for path, body in kinds():
                status, choices = await ask(http, path, body)
                assert status == 200, (path, body)
                expected.append((path, body, choices))

            async def storm(seconds, seed):
                clients = [Client(http, expected, seed + i) for i in range(NUM_CLIENTS)]
                async with asyncio.TaskGroup() as group:
                    for client in clients:
                        group.create_task(client.run(seconds))
                await settled(http)
                return sum((client.outcomes for client in clients), Counter())

            for seed in range(3):  # torch's kernels for each new shape of a batch stay in memory, up to a bound
                await storm(SECONDS / 6, seed=seed * 1000)
            before = resident_bytes(process)
            short_of_memory = asyncio.create_task(ask(http, COMPLETIONS, marked(OUT_OF_MEMORY)))
            outcomes = await storm(SECONDS / 2, seed=5000)
            assert await short_of_memory == await ask(http, COMPLETIONS, marked(OUT_OF_MEMORY))
            assert "memory" in (tmp_path / "log").read_text(), "nothing ran out of it"
            await settled(http)

            print(outcomes, f"{before / 2**20:.1f} MiB, then {resident_bytes(process) / 2**20:.1f} MiB")
            assert min(outcomes[sort] for sort in ("answered", "hung up", "malformed", "failed")) >= NUM_CLIENTS / 2
            assert resident_bytes(process) < 1.05 * before
            assert (await http.get("/health")).status_code == 200
        process.terminate()
        assert process.wait(timeout=45) == 0
