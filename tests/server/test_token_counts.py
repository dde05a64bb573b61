"""What /metrics counts of tokens is what answers say in `usage`, whatever kind of request they answer."""

import asyncio
from dataclasses import replace
from typing import cast

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import EngineConfig, EngineLoop, FinishReason, load
from server.http.app import create_app
from server.settings.tree import build
from server.text.tokenizer import Tokenizer

from .conftest import Api
from .fake_engine import FakeEngine

BLOCKS = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4)
COMMON = {
    "stream": st.booleans(),
    "n": st.integers(1, 2),
    "stop": st.sampled_from([[], ["ab"], ["cca", "b"]]),
    "min_tokens": st.integers(0, 3),
}
PROMPTS = st.sampled_from(["a", "abc", [97, 98, 99], ["a", "bcd"], [[97], [98, 99]]])
KINDS = st.one_of(
    st.fixed_dictionaries({**COMMON, "messages": st.just([{"role": "user", "content": "hi"}])}),
    st.fixed_dictionaries({**COMMON, "prompt": PROMPTS, "echo": st.booleans(), "logprobs": st.sampled_from([None, 0])}),
    st.fixed_dictionaries(
        {
            "prompt": PROMPTS,
            "echo": st.just(True),
            "logprobs": st.sampled_from([None, 1]),
            "max_tokens": st.integers(0, 1),
            "stream": st.booleans(),
        }
    ),
    st.fixed_dictionaries({"prompt": PROMPTS, "best_of": st.just(2), "stop": st.sampled_from([[], ["b"]])}),
    st.fixed_dictionaries({"prompt": st.just("a"), "suffix": st.just("z"), "stop": st.sampled_from([[], ["b"]])}),
)


async def ask(api, body):
    """The usage that the answer ends with."""
    if body.get("stream"):
        body = {**body, "stream_options": {"include_usage": True}}
    path = "chat/completions" if "messages" in body else "completions"
    response = await api.client.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    return (api.events_of(response.text)[-1] if body.get("stream") else response.json())["usage"]


async def counted(api, prefix="unmask_"):
    """Tokens of prompts and of answers, in /metrics."""
    lines = (await api.client.get("/metrics")).text.splitlines()
    return tuple(
        float(line.rpartition(" ")[2])
        for name in ("prompt_tokens_total", "generation_tokens_total")
        for line in lines
        if line.startswith(f"{prefix}{name}{{")
    )


def server(engine, tokenizer):
    config = build({"served_model_name": ["fake"], "metrics_compat": "vllm"})
    app = create_app(cast(EngineLoop, engine), tokenizer, config)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@given(
    blocks=BLOCKS, reason=st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]), bodies=st.lists(KINDS, max_size=3)
)
@settings(deadline=None, max_examples=40)
def test_metrics_and_usage_agree(tokenizer, blocks, reason, bodies):
    async def check():
        engine = FakeEngine()
        engine.stats = replace(engine.stats, waiting=0)
        engine.script = lambda asked: ["b" * asked.sampling.max_tokens] if asked.holes else [*blocks, reason]
        async with server(engine, tokenizer) as client:
            api = Api(client)
            usages = [await ask(api, body) for body in bodies]
            told = tuple(sum(usage[name] for usage in usages) for name in ("prompt_tokens", "completion_tokens"))
            assert await counted(api) == await counted(api, "vllm:") == told

    asyncio.run(check())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": [5] * 40, "echo": True, "logprobs": 0, "max_tokens": 0}, (40, 0)),
        ({"prompt": [5] * 40, "echo": True, "logprobs": 0, "max_tokens": 1}, (40, 1)),
        ({"prompt": [5, 6, 7], "max_tokens": 32, "ignore_eos": True, "n": 3}, (3, 96)),
        ({"prompt": [5, 6, 7], "max_tokens": 40, "ignore_eos": True, "stop": " "}, (3, 2)),
    ],
)
async def test_the_engines_own_requests_are_not_the_clients(llada_tiny, body, expected):
    """Of a real engine: scoring is a request for each token, and a stop string cuts a block that was decoded whole."""
    engine = EngineLoop(load(EngineConfig(model=str(llada_tiny))))
    engine.start()
    try:
        async with server(engine, Tokenizer.load(llada_tiny)) as client:
            usage = await ask(Api(client), body)
            assert await counted(Api(client)) == (usage["prompt_tokens"], usage["completion_tokens"]) == expected
    finally:
        await engine.stop(0)
