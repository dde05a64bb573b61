"""/v1/fim/completions, and prompts of /v1/completions in the templates of coder models."""

import jsonschema
import pytest

from engine import Hole

QWEN = "<|fim_prefix|>ab<|fim_suffix|>yz<|fim_middle|>"


@pytest.fixture
def fim(api, engine):
    """`await fim(...)`: the response of one that fills with "one two!"."""
    engine.script = lambda _: ["one ", "two!"]

    async def post(**body):
        body = {"model": "fake", "prompt": "ab", "suffix": "yz", "max_tokens": 8, **body}
        return await api.client.post("/v1/fim/completions", json=body)

    return post


async def test_a_whole_answer(api, engine, fim):
    response = await fim(random_seed=7, temperature=0.5, stop=[], min_tokens=None, metadata={"a": "b"})
    answer = response.json()
    [choice] = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("fim-")
    assert choice["message"] == {"role": "assistant", "content": "one two!"}
    assert (choice["text"], choice["finish_reason"]) == ("one two!", "length")
    assert answer["usage"]["diffusion"]["fills"] == ["one two!"]
    [submission] = engine.submissions
    assert bytes(submission.prompt_ids) == b"abyz"
    assert submission.holes == (Hole(2, 8),)
    assert submission.sampling.seed == 7
    described = (await api.client.get("/openapi.json")).json()
    whole = described["paths"]["/v1/fim/completions"]["post"]["responses"]["200"]["content"]["application/json"]
    jsonschema.validate(answer, {**whole["schema"], "components": described["components"]})


async def test_a_stream(api, fim):
    chunks = api.events_of((await fim(stream=True)).text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "one two!"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "length"]
    assert all(chunk["choices"][0]["text"] == chunk["choices"][0]["delta"]["content"] for chunk in chunks)


async def test_without_a_suffix_the_text_goes_on(engine, fim):
    assert (await fim(suffix=None)).json()["choices"][0]["message"]["content"] == "one two!"
    assert engine.submissions[0].holes == ()


async def test_a_seed_wins(engine, fim):
    await fim(seed=3, random_seed=7)
    assert engine.submissions[0].sampling.seed == 3


async def test_a_random_seed_is_a_seed(api, engine, fim):
    for seed in (2**63, -(2**63) - 1):
        assert api.error_of(await fim(random_seed=seed), 400)["param"] == "random_seed"
    for seed in (-(2**63), 2**63 - 1):
        assert (await fim(random_seed=seed)).status_code == 200
        assert engine.submissions[-1].sampling.seed == seed
    drawn = set()
    for _ in range(3):
        assert (await fim(random_seed=-1)).status_code == 200
        drawn.add(engine.submissions[-1].sampling.seed)
    assert len(drawn) == 3
    assert -1 not in drawn


async def test_an_error_names_its_field(api, fim):
    assert api.error_of(await fim(max_tokens="many"), 400)["param"] == "max_tokens"
    assert api.error_of(await fim(prompt=None), 400)["param"] == "prompt"
    assert api.error_of(await fim(random_seed="x"), 400)["param"] == "random_seed"


@pytest.mark.parametrize(("length", "hole"), [({"max_tokens": 4}, 4), ({}, 16)])
async def test_a_template_is_a_hole(api, engine, length, hole):
    engine.script = lambda submission: [b"x" * submission.sampling.max_tokens]
    choice = (await api.complete(prompt=QWEN, **length)).json()["choices"][0]
    assert choice["text"] == "x" * hole
    assert bytes(engine.submissions[0].prompt_ids) == b"abyz"
    assert engine.submissions[0].holes == (Hole(2, hole),)
    assert (await api.complete(prompt=QWEN, echo=True, **length)).json()["choices"][0]["text"] == f"ab{'x' * hole}yz"


async def test_a_model_that_knows_the_template_reads_it(api, engine, tokenizer, monkeypatch):
    known = {**tokenizer.added_tokens, 300: type(tokenizer.added_tokens[256])("<|fim_prefix|>")}
    monkeypatch.setattr(type(tokenizer), "added_tokens", known)
    await api.complete(prompt=QWEN)
    assert bytes(engine.submissions[0].prompt_ids) == QWEN.encode()
