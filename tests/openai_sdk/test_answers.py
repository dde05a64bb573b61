"""Answers whole and in streams, and requests that get none, as OpenAI's own client meets them."""

import asyncio

import openai
import pytest

from .said import CHAT, SMALL_BLOCKS, SORT, STORY, TALE, streamed, texts


async def test_completions(either):
    answer = await either.complete(prompt=SORT, max_tokens=32)
    assert texts(answer) == [" Sorted: 3 5 7 12."]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.diffusion["forwards"] > 0


@pytest.mark.parametrize("temperature", [0, 1])
async def test_a_streamed_completion_is_the_whole_one(sdk, temperature):
    body = {"prompt": [SORT, STORY], "max_tokens": 48, "temperature": temperature, "seed": 3, "n": 2}
    body["extra_body"] = SMALL_BLOCKS
    whole = await sdk.complete(**body)
    *chunks, last = await sdk.complete(**body, stream=True, stream_options={"include_usage": True})
    assert [streamed(chunks, index) for index in range(4)] == texts(whole)
    assert len(chunks) > 8
    ends = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(ends) == [0, 1, 2, 3]
    assert last.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


async def test_chat(either):
    answer = await either.chat(messages=CHAT)
    assert answer.choices[0].message.content == "Sorted: 3 5 7 12."
    assert answer.choices[0].message.role == "assistant"
    assert (answer.object, answer.choices[0].finish_reason) == ("chat.completion", "stop")


async def test_a_streamed_chat_is_the_whole_one(either):
    body = {"messages": TALE, "max_completion_tokens": 64, "temperature": 1, "seed": 3, "n": 2}
    body["extra_body"] = SMALL_BLOCKS
    whole = await either.chat(**body)
    *chunks, last = await either.chat(**body, stream=True, stream_options={"include_usage": True})
    for index in (0, 1):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert [choice.delta.role for choice in own] == ["assistant"] + [None] * (len(own) - 1)
        assert "".join(choice.delta.content for choice in own) == whole.choices[index].message.content
        assert [choice.finish_reason for choice in own if choice.finish_reason] == [whole.choices[index].finish_reason]
    assert last.usage == whole.usage


async def test_the_clients_own_accumulator(demo_server):
    async with (
        openai.AsyncOpenAI(base_url=f"{demo_server}/v1", api_key="none") as client,
        client.chat.completions.stream(model="demo", messages=CHAT, max_tokens=32) as stream,
    ):
        final = await stream.get_final_completion()
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].message.content == "Sorted: 3 5 7 12."


async def test_four_choices(sdk):
    body = {"prompt": STORY, "max_tokens": 24, "temperature": 1, "seed": 11}
    four = texts(await sdk.complete(**body, n=4))
    assert len(set(four)) == 4
    assert texts(await sdk.complete(**body, n=4)) == four, "the same four for the same seed"
    assert texts(await sdk.complete(**body)) == four[:1]
    assert texts(await sdk.complete(**{**body, "seed": 12}, n=4)) != four
    del body["seed"]
    assert texts(await sdk.complete(**body)) != texts(await sdk.complete(**body))


async def test_the_best_of_several(sdk):
    body = {"prompt": STORY, "max_tokens": 24, "temperature": 1.5, "seed": 11, "logprobs": 0}
    drawn = (await sdk.complete(**body, n=4)).choices
    best = (await sdk.complete(**body, n=2, best_of=4)).choices

    def mean(choice):
        said = choice.logprobs.token_logprobs
        return sum(said) / len(said)

    ranked = sorted(drawn, key=mean, reverse=True)
    assert [choice.text for choice in best] == [choice.text for choice in ranked[:2]]


async def test_a_request_is_what_it_is_alone(sdk):
    """Whatever temperatures and policies its neighbours have."""
    neighbours = [
        {"temperature": temperature, "seed": 1, "extra_body": {"diffusion": diffusion}}
        for temperature, diffusion in [
            (0, {"cache": "none", "unmask": "fixed"}),
            (0.3, {"cache": "prefix", "unmask": "random"}),
            (1.7, {"cache": "dual", "unmask": "entropy_bound"}),
            (0, {"cache": "window", "unmask": "factor"}),
            (2, {"cache": "d2", "unmask": "certainty"}),
            (0, {"unmask": "cad"}),
            (0.5, {"unmask": "dream"}),
            (1, {"unmask": "margin"}),
        ]
    ]
    asked = [
        {"prompt": STORY, "max_tokens": 40, "temperature": 0.9, "seed": 5, "presence_penalty": 1, "top_p": 0.9},
        {"prompt": STORY, "max_tokens": 40, "temperature": 0.2, "seed": 5, "logit_bias": {"7": 3}},
    ]
    alone = [texts(await sdk.complete(**body)) for body in asked]
    others = [sdk.complete(prompt=STORY, max_tokens=24, **body) for body in neighbours]
    together = await asyncio.gather(*(sdk.complete(**body) for body in asked), *others)
    assert [texts(answer) for answer in together[:2]] == alone
    assert alone[0] != alone[1]


@pytest.mark.parametrize("block_length", [1, 3, 16])
async def test_a_stop_string_is_cut_wherever_blocks_split_it(sdk, block_length):
    body = {"prompt": SORT, "max_tokens": 16, "extra_body": {"diffusion": {"block_length": block_length}}}
    answer = await sdk.complete(**body, stop=["5 7"])
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, choice.stop_reason) == (" Sorted: 3 ", "stop", "5 7")
    assert streamed(await sdk.complete(**body, stop=["5 7"], stream=True)) == " Sorted: 3 "
    body["extra_body"] |= {"include_stop_str_in_output": True}
    assert texts(await sdk.complete(**body, stop="5 7")) == [" Sorted: 3 5 7"]


async def test_the_context_is_finite(sdk, http):
    length = (await http.get("/v1/models")).json()["data"][0]["max_model_len"]
    with pytest.raises(openai.BadRequestError) as error:
        await sdk.complete(prompt=SORT, max_tokens=length)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "max_tokens")
    with pytest.raises(openai.BadRequestError) as error:
        await sdk.chat(messages=CHAT, max_completion_tokens=length)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "max_completion_tokens")
    with pytest.raises(openai.BadRequestError) as error:
        await sdk.chat(messages=[{"role": "user", "content": "cow " * length}])
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")
    answer = await sdk.chat(messages=[{"role": "user", "content": "cow" + " cow" * (length - 40)}])
    assert answer.usage.completion_tokens <= 40, "what the context holds"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"extra_body": {"allowed_token_ids": [99999]}}, "allowed_token_ids"),
        ({"extra_body": {"stop_token_ids": [99999]}}, "stop_token_ids"),
        ({"extra_body": {"min_tokens": 17}}, "min_tokens"),
        ({"extra_body": {"repetition_penalty": -1}}, "repetition_penalty"),
        ({"extra_body": {"diffusion": {"steps": 0}}}, "diffusion.steps"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": "a<|fill:100000|>", "max_tokens": None}, "prompt"),
        ({"suffix": "x", "max_tokens": 100000}, "prompt"),
        ({"n": 128, "prompt": ["a"] * 3}, "n"),
        ({"extra_body": {"response_format": {"type": "json_schema"}}}, "response_format"),
    ],
)
async def test_a_bad_request_names_its_field(sdk, body, param):
    with pytest.raises(openai.BadRequestError) as error:
        await sdk.complete(**{"prompt": SORT, "max_tokens": 16, **body})
    assert error.value.param == param
    assert error.value.request_id
