"""`unmask serve` as a user meets it: a process on a port, the official SDK, clients that come and go."""

import asyncio
import json
import random
import subprocess
import sys
from contextlib import contextmanager

import httpx
import openai
import pytest


@pytest.fixture
def client(golden_server):
    return openai.OpenAI(base_url=f"{golden_server}/v1", api_key="none", max_retries=0)


def text(token_ids):
    """The tiny checkpoint's tokenizer reads token i as `ti`."""
    return " ".join(f"t{token}" for token in token_ids)


def options(row):
    keys = ("cache", "unmask", "block_length", "steps", "threshold", "factor")
    return {
        "prompt": row["prompt"],
        "max_tokens": row["gen_length"],
        "temperature": 0,
        "extra_body": {"diffusion": {"lookahead": None} | {key: row[key] for key in keys if key in row}},
    }


def test_create(client, golden):
    row = golden[6]
    answer = client.completions.create(model="llada-tiny", **options(row))
    assert answer.choices[0].text == text(row["output"])
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(row["prompt"])
    assert answer.usage.completion_tokens == row["gen_length"]
    diffusion = answer.usage.diffusion
    assert (diffusion["cache"], diffusion["unmask"]) == (row["cache"], row["unmask"])
    assert diffusion["forwards"] == row["nfe"]
    assert diffusion["tokens_per_forward"] == pytest.approx(row["gen_length"] / row["nfe"])


def test_stream_is_one_chunk_per_block(client, golden):
    row = golden[8]
    stream = client.completions.create(
        model="llada-tiny", stream=True, stream_options={"include_usage": True}, **options(row)
    )
    *chunks, usage = stream
    blocks = [row["output"][i : i + row["block_length"]] for i in range(0, row["gen_length"], row["block_length"])]
    assert len(chunks) == len(blocks)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text(row["output"])
    for chunk, block in zip(chunks, blocks, strict=True):
        assert chunk.choices[0].text.split() == text(block).split()
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert usage.choices == []
    assert usage.usage.completion_tokens == row["gen_length"]


def test_list_of_prompts(client, golden):
    rows = [golden[0], golden[60], golden[120]]
    assert len({json.dumps({**options(row), "prompt": None}) for row in rows}) == 1, "one set of options"
    answer = client.completions.create(
        model="llada-tiny", **{**options(rows[0]), "prompt": [row["prompt"] for row in rows]}
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == [text(row["output"]) for row in rows]


def test_text_prompts_are_tokenised(client, golden):
    row = golden[6]
    answer = client.completions.create(model="llada-tiny", **{**options(row), "prompt": text(row["prompt"])})
    assert answer.choices[0].text == text(row["output"])


def test_models(client):
    assert [model.id for model in client.models.list()] == ["llada-tiny"]
    assert client.models.retrieve("llada-tiny").object == "model"


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"extra_body": {"diffusion": {"cache": "lru"}}}, openai.BadRequestError, "diffusion.cache"),
        ({"max_tokens": 5000}, openai.BadRequestError, "max_tokens"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"model": "gpt-4"}, openai.NotFoundError, "model"),
    ],
)
def test_errors_reach_the_sdk(client, change, error, param):
    with pytest.raises(error) as caught:
        client.completions.create(**{"model": "llada-tiny", "prompt": [1, 2], **change})
    assert caught.value.param == param
    assert caught.value.request_id


async def gauge(http, name):
    """One number of /metrics."""
    lines = (await http.get("/metrics")).text.splitlines()
    [value] = [line.split()[-1] for line in lines if line.startswith(f"unmask_{name}{{")]
    return float(value)


PROBE = """
import contextlib, http.client, pathlib, sys, time

def waited():  # seconds that each thread of the server, and this one, has waited for a processor
    of = {}
    for thread in [*pathlib.Path(f"/proc/{sys.argv[2]}/task").iterdir(), pathlib.Path("/proc/self")]:
        with contextlib.suppress(OSError):  # it has ended
            of[thread] = int((thread / "schedstat").read_text().split()[1]) / 1e9
    return of

connection = http.client.HTTPConnection(sys.argv[1])
print("ready", flush=True)
while True:
    before, start = waited(), time.perf_counter()
    connection.request("GET", "/health")
    response = connection.getresponse()
    response.read()
    seconds = time.perf_counter() - start
    assert response.status == 200
    print(seconds - sum(after - before.get(thread, after) for thread, after in waited().items()), flush=True)
    time.sleep(0.01)
"""


@contextmanager
def health_probe(url):
    """Seconds that /health takes while the body runs, seen from a process of its own: it has no other work to do.

    Without those in which the machine was busy with others, so that server and probe waited for a processor.
    """
    latencies = []
    command = [sys.executable, "-c", PROBE, url.removeprefix("http://"), str(url.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdout.readline() == "ready\n"
        yield latencies
        probe.terminate()
        latencies += map(float, probe.stdout.read().splitlines())


@pytest.mark.slow
async def test_sixty_four_clients(golden_server, golden):
    """Mixed policies and lengths, random hang-ups, a queue that overflows: survivors' answers are the golden ones."""
    rng = random.Random(64)
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=golden_server, timeout=60, limits=limits) as http:
        outcomes = {"answered": 0, "refused": 0, "hung up": 0}

        async def one(row):
            body = options(row)
            body |= {"diffusion": body.pop("extra_body")["diffusion"], "stream": True}
            patience = rng.choice([None, None, 1, 2])
            async with http.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code == 429:
                    assert int(response.headers["retry-after"]) >= 1
                    outcomes["refused"] += 1
                    return
                assert response.status_code == 200
                pieces = []
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        pieces.append(json.loads(line[6:])["choices"][0]["text"])
                        if len(pieces) == patience and len(pieces) < row["gen_length"] / row["block_length"]:
                            outcomes["hung up"] += 1
                            return
                assert "".join(pieces) == text(row["output"])
                outcomes["answered"] += 1

        async def client():
            for row in rng.sample(golden, 2):
                await asyncio.sleep(rng.random() * 0.5)
                await one(row)

        with health_probe(golden_server) as latencies:
            await asyncio.gather(*(client() for _ in range(64)))
        assert min(outcomes.values()) > 0, outcomes
        assert sum(outcomes.values()) == 128
        async with asyncio.timeout(10):
            while any([await gauge(http, name) for name in ("kv_pages_used", "requests_running", "requests_waiting")]):
                await asyncio.sleep(0.05)
        assert len(latencies) > 50
        assert sorted(latencies)[int(len(latencies) * 0.99)] < 0.05, sorted(latencies)[-5:]


def test_what_a_budget_has_evicted_is_told(client):
    asked = {"prompt": list(range(5, 65)), "max_tokens": 32, "n": 2, "temperature": 0}
    body = {"diffusion": {"block_length": 16, "kv_budget": 24}}
    usage = client.completions.create(model="llada-tiny", **asked, extra_body=body).usage.diffusion
    assert usage["kv_evicted"] == 2 * (60 + 16 - 24)
    assert usage["kv_resident_peak"] == 60 + 32
    assert usage["visible_tokens"] == 2 * (60 + 32)
    usage = client.completions.create(model="llada-tiny", **asked).usage.diffusion
    assert "kv_evicted" not in usage


def test_a_budget_that_its_cache_refuses(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(
            model="llada-tiny", prompt=[5], extra_body={"diffusion": {"cache": "none", "kv_budget": 24}}
        )
    assert refused.value.param == "diffusion.kv_budget"
