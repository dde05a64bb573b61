"""Prompts in every form, what is told of them, and holes in them, as OpenAI's client asks for it."""

import math
from collections.abc import Sequence
from itertools import pairwise

import openai
import pytest

from engine import DEMO_MODEL, EngineConfig, load

from .said import CHAT, SMALL_BLOCKS, SORT, STORY, TALE, streamed, texts, tokens_of


async def test_every_form_of_prompt(sdk, http):
    ids = await tokens_of(http, SORT)
    for prompt in ([SORT, SORT], ids, [ids, ids]):
        answer = await sdk.complete(prompt=prompt, max_tokens=16)
        assert set(texts(answer)) == {" Sorted: 3 5 7 12."}
        assert answer.usage.prompt_tokens == len(ids) * len(answer.choices)


async def test_echo(sdk):
    assert texts(await sdk.complete(prompt=SORT, max_tokens=16, echo=True)) == [SORT + " Sorted: 3 5 7 12."]
    answer = await sdk.complete(prompt=SORT, max_tokens=0, echo=True)
    assert texts(answer) == [SORT]
    assert answer.usage.completion_tokens == 0
    assert streamed(await sdk.complete(prompt=SORT, max_tokens=16, echo=True, stream=True)).startswith(SORT)


async def test_log_probabilities(sdk):
    body = {"prompt": STORY, "max_tokens": 32, "logprobs": 3, "extra_body": SMALL_BLOCKS}
    whole = await sdk.complete(**body)
    [choice] = whole.choices
    said = choice.logprobs
    assert "".join(said.tokens) == choice.text
    assert len(said.tokens) == whole.usage.completion_tokens
    assert [start for start, _ in pairwise(said.text_offset)] == [
        len("".join(said.tokens[:place])) for place in range(len(said.tokens) - 1)
    ]
    for token, logprob, top in zip(said.tokens, said.token_logprobs, said.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values()), "greedy"
        assert len(top) == 3
        assert sum(map(math.exp, top.values())) <= 1 + 1e-6
    chunks = await sdk.complete(**body, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for part in parts for value in getattr(part, key)] == getattr(said, key)


async def test_log_probabilities_of_a_chat(sdk):
    body = {"messages": TALE, "max_tokens": 32, "logprobs": True, "top_logprobs": 2, "extra_body": SMALL_BLOCKS}
    [choice] = (await sdk.chat(**body)).choices
    content = choice.logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == choice.message.content
    assert all(len(entry.top_logprobs) == 2 for entry in content)
    assert all(entry.logprob == entry.top_logprobs[0].logprob <= 0 for entry in content)
    _, *chunks = await sdk.chat(**body, stream=True)
    assert [entry for chunk in chunks for entry in chunk.choices[0].logprobs.content] == content


@pytest.fixture(scope="module")
def masked_logprobs():
    """The oracle: one plain forward over a text with one token masked, outside of engine and server."""
    import torch

    from engine.bench.reference import DenseContext

    engine = load(EngineConfig(model=DEMO_MODEL))
    model = engine.runner.model

    @torch.inference_mode()
    def score(ids: Sequence[int], place: int) -> float:
        canvas = torch.tensor(ids)
        canvas[place] = engine.info.spec.mask_id
        hidden = model(canvas, torch.arange(len(ids)), DenseContext(model, len(ids)))
        logits = model.logits(hidden[place : place + 1])[0].double()
        logits[engine.info.spec.mask_id] = -math.inf
        return torch.log_softmax(logits, -1)[ids[place]].item()

    return score


async def test_a_scored_prompt(sdk, http, masked_logprobs):
    prompt = "Question: What is the capital of France?\nAnswer: The answer is Paris."
    ids = await tokens_of(http, prompt)
    expected = [masked_logprobs(ids, place) for place in range(1, len(ids))]
    for form, max_tokens in ((prompt, 0), (ids, 1)):
        answer = await sdk.complete(prompt=form, max_tokens=max_tokens, echo=True, logprobs=1)
        said = answer.choices[0].logprobs
        assert len(said.tokens) == len(ids) + max_tokens
        assert said.token_logprobs[0] is None
        assert said.top_logprobs[0] is None
        # The model's logits reach 20: in float32 the order of sums alone moves a logarithm by 1e-4 of itself.
        assert said.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-4, rel=2e-4)
        assert answer.choices[0].text.startswith(prompt)
        assert answer.usage.completion_tokens == max_tokens


async def test_scores_choose_the_right_answer(sdk):
    """What lm-eval's multiple choice does."""
    question = "Question: What is the capital of {}?\nAnswer: The answer is {}."
    cities = {"France": "Paris", "Norway": "Oslo", "Italy": "Rome"}
    for country in cities:
        prompts = [question.format(country, city) for city in cities.values()]
        answer = await sdk.complete(prompt=prompts, max_tokens=1, echo=True, logprobs=1)
        scores = [sum(choice.logprobs.token_logprobs[1:-1]) for choice in answer.choices]
        assert list(cities.values())[scores.index(max(scores))] == cities[country]


async def test_a_suffix(sdk):
    body = {"prompt": f"{SORT} Sorted:", "suffix": " 12.", "max_tokens": 3}
    answer = await sdk.complete(**body)
    assert texts(answer) == [" 3 5 7"]
    assert answer.usage.diffusion["fills"] == [" 3 5 7"]
    assert texts(await sdk.complete(**body, echo=True)) == [f"{SORT} Sorted: 3 5 7 12."]
    assert streamed(await sdk.complete(**body, stream=True)) == " 3 5 7"


async def test_holes(sdk):
    prompt = "Question: Sort these numbers: 7 3 12 5.\nAnswer: Sorted:<|fill:1|> 5<|fill:2|>."
    answer = await sdk.complete(prompt=prompt, echo=True)
    assert texts(answer) == [f"{SORT} Sorted: 3 5 7 12."]
    assert answer.usage.diffusion["fills"] == [" 3", " 7 12"]
    *chunks, last = await sdk.complete(
        prompt=prompt,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"diffusion": {"block_length": 1}},
    )
    assert streamed(chunks) == " 3 7 12"
    assert last.usage.diffusion["fills"] == [" 3", " 7 12"]
    said = (await sdk.complete(prompt=prompt, logprobs=1)).choices[0].logprobs
    assert said.tokens == [" 3", " 7", " 12"]


async def test_holes_in_every_policy(sdk):
    prompt = "Question: Sort these numbers: 7 3 12 5.\nAnswer: Sorted:<|fill:1|> 5<|fill:2|>."
    for diffusion in ({"cache": "prefix"}, {"cache": "d2"}, {"cache": "none", "unmask": "dream"}, {"unmask": "cad"}):
        answer = await sdk.complete(prompt=prompt, extra_body={"diffusion": diffusion})
        assert answer.usage.diffusion["fills"] == [" 3", " 7 12"], diffusion


async def test_token_ids(sdk, http):
    answer = await sdk.complete(prompt=SORT, max_tokens=16, extra_body={"return_token_ids": True})
    [choice] = answer.choices
    assert choice.prompt_token_ids == await tokens_of(http, SORT)
    told = await http.post("/detokenize", json={"tokens": choice.token_ids})
    assert told.json()["prompt"] == choice.text


async def test_a_conversation_is_tokenised_as_it_is_served(sdk, http):
    tokens = (await http.post("/tokenize", json={"messages": CHAT})).json()
    answer = await sdk.chat(messages=CHAT, max_tokens=16, extra_body={"return_token_ids": True})
    assert answer.prompt_token_ids == tokens["tokens"]
    assert answer.usage.prompt_tokens == tokens["count"]
    told = (await http.post("/detokenize", json={"tokens": tokens["tokens"]})).json()["prompt"]
    assert told.startswith("<|startoftext|>")
    assert told.endswith("assistant<|end_header_id|>\n\n")


async def test_the_last_message_may_go_on(sdk):
    messages = [*CHAT, {"role": "assistant", "content": "Sorted: 3 5"}]
    answer = await sdk.chat(messages=messages, max_tokens=8, extra_body={"continue_final_message": True})
    assert answer.choices[0].message.content == " 7 12."


async def test_the_last_tokens_of_the_context_are_used(sdk, http):
    """The demo model has 1,024: less than a block is left behind these prompts."""
    ids = (await tokens_of(http, STORY)) * 60
    body = {"prompt": ids[:1004], "extra_body": {"ignore_eos": True}}
    for max_tokens, completed in ((10, 10), (-1, 20)):
        answer = await sdk.complete(**body, max_tokens=max_tokens)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1004, completed)
    with pytest.raises(openai.BadRequestError) as error:
        await sdk.complete(**body, max_tokens=21)
    assert error.value.code == "context_length_exceeded"


async def test_a_chat_without_a_length_uses_the_room_that_is_left(sdk, http):
    def said(length):
        return [{"role": "user", "content": "x" * length}]  # a token each

    frame = (await http.post("/tokenize", json={"messages": said(1)})).json()["count"] - 1
    usage = (await sdk.chat(messages=said(1009 - frame), extra_body={"ignore_eos": True})).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (1009, 15)
