"""`diffusion.relay_from` over HTTP: whose keys and values a prompt takes over, and what is told of it."""

from contextlib import asynccontextmanager

import httpx
import pytest

from engine import DEMO_MODEL, EngineConfig, EngineLoop, load

KEYS = {"api_key": ["one", "two"]}
QUESTION = {"role": "user", "content": "Sort these numbers: 14 3 9 20 7 11 2."}
NEXT = {"role": "user", "content": "And the largest first?"}
BEFORE = [{"role": "user", "content": "What is the capital of Norway?"}, {"role": "assistant", "content": "Oslo."}]


@pytest.fixture
def serving(listening, demo_tokenizer):
    """`async with serving(relay_tokens) as ask`: asks a server of the bundled model."""

    @asynccontextmanager
    async def running(relay_tokens=4096, **settings):
        engine = EngineLoop(load(EngineConfig(model=DEMO_MODEL, relay_tokens=relay_tokens)))
        async with listening(engine, demo_tokenizer, **settings) as (url, _), httpx.AsyncClient(base_url=url) as http:

            async def ask(path, *, key="one", relay_from=(), **body):
                diffusion = {**body.pop("diffusion", {}), **({"relay_from": relay_from} if relay_from else {})}
                headers = {"Authorization": f"Bearer {key}"}
                body = {"max_tokens": 16, "diffusion": diffusion, **body}
                return (await http.post(f"/v1/{path}", json=body, headers=headers)).json()

            ask.http = http
            yield ask

    return running


def told(answer):
    usage = answer["usage"]["diffusion"]
    return {name.removeprefix("relay_"): usage[name] for name in usage if name.startswith("relay_")}


async def test_a_completion_takes_over_what_its_prompt_repeats(serving):
    prompt = list(range(300, 340))
    async with serving(**KEYS) as ask:
        first = await ask("completions", prompt=prompt)
        assert told(first) == {}
        again = {"prompt": [*range(400, 420), *prompt, *range(420, 440)], "relay_from": [first["id"]]}
        assert told(await ask("completions", **again)) == {"adopted": 40, "recomputed": 6, "unknown": 0}
        assert told(await ask("completions", **again, n=2))["adopted"] == 80
        assert told(await ask("completions", **again, key="two")) == {"adopted": 0, "recomputed": 0, "unknown": 1}
        salted = await ask("completions", **again, cache_salt="another")
        assert told(salted) == {"adopted": 0, "recomputed": 0, "unknown": 1}
        unknown = await ask("completions", **{**again, "relay_from": [first["id"], "cmpl-gone"]})
        assert told(unknown) == {"adopted": 40, "recomputed": 6, "unknown": 1}
        metrics = (await ask.http.get("/metrics", headers={"Authorization": "Bearer one"})).text
    [adopted] = [line for line in metrics.splitlines() if line.startswith('unmask_relay_tokens_total{kind="adopted"')]
    assert adopted.endswith(" 160.0")
    assert "unmask_relay_pages{" in metrics


async def test_a_chat_takes_over_nothing_from_its_last_turn_on(serving):
    async with serving(**KEYS) as ask:
        first = await ask("chat/completions", messages=[QUESTION])
        answer = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
        turns = [*BEFORE, QUESTION, answer, NEXT]
        second = await ask("chat/completions", messages=turns, relay_from=[first["id"]])
        assert told(second)["adopted"] > 30
        same = await ask("chat/completions", messages=[*BEFORE, QUESTION], relay_from=[first["id"]])
        assert told(same) == {"adopted": 0, "recomputed": 0, "unknown": 0}
        alone = await ask("chat/completions", messages=[QUESTION], relay_from=[first["id"]])
        assert told(alone) == {"adopted": 0, "recomputed": 0, "unknown": 0}
        events = {"input": turns, "diffusion": {"relay_from": [first["id"]]}, "max_output_tokens": 16}
        headers = {"Authorization": "Bearer one"}
        response = (await ask.http.post("/v1/responses", json=events, headers=headers)).json()
        assert told(response) == told(second)


async def test_what_is_refused_and_what_changes_nothing(serving):
    prompt = list(range(300, 340))
    async with serving(relay_tokens=0, **KEYS) as ask:
        first = await ask("completions", prompt=prompt)
        second = await ask("completions", prompt=prompt, relay_from=[first["id"]])
        assert told(second) == {"adopted": 0, "recomputed": 0, "unknown": 1}
        assert second["choices"][0]["text"] == first["choices"][0]["text"]
        none = await ask("completions", prompt=prompt, relay_from=[first["id"]], diffusion={"cache": "none"})
        assert none["error"]["param"] == "diffusion.relay_from"
        many = await ask("completions", prompt=prompt, relay_from=["a"] * 9)
        assert many["error"]["param"] == "diffusion.relay_from"
        long = await ask("completions", prompt=prompt, relay_from=["a" * 200])
        assert long["error"]["param"].startswith("diffusion.relay_from")
        share = await ask("completions", prompt=prompt, diffusion={"relay_recompute": 1.5})
        assert share["error"]["param"] == "diffusion.relay_recompute"
