"""Which tokens may be drawn, and where they end the answer, as OpenAI's client asks for it."""

import pytest

from .said import SORT, STORY, texts, tokens_of


async def test_stop_tokens(sdk, http):
    [five] = await tokens_of(http, " 5")
    [choice] = (await sdk.complete(prompt=SORT, max_tokens=16, extra_body={"stop_token_ids": [five]})).choices
    assert (choice.text, choice.finish_reason, choice.stop_reason) == (" Sorted: 3", "stop", five)


async def test_ignore_eos_and_min_tokens(sdk):
    answer = await sdk.complete(prompt=SORT, max_tokens=24, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 24
    assert answer.choices[0].finish_reason == "length"
    answer = await sdk.complete(prompt=SORT, max_tokens=24, extra_body={"min_tokens": 20})
    assert answer.usage.completion_tokens >= 20


async def test_which_tokens_may_be_drawn(sdk, http):
    [cow], [sun] = await tokens_of(http, " cow"), await tokens_of(http, " sun")
    greedy = await sdk.complete(prompt=SORT, max_tokens=4, logit_bias={str(cow): 100})
    assert texts(greedy) == [" cow" * 4]
    answer = await sdk.complete(prompt=SORT, max_tokens=8, temperature=1, extra_body={"allowed_token_ids": [cow, sun]})
    assert set(answer.choices[0].text.split()) <= {"cow", "sun"}
    answer = await sdk.complete(prompt=SORT, max_tokens=16, extra_body={"bad_words": ["Sorted", "7"]})
    assert "Sorted" not in answer.choices[0].text
    assert " 7" not in answer.choices[0].text


@pytest.mark.parametrize("penalty", [{"presence_penalty": 2}, {"frequency_penalty": 2}])
async def test_penalties(sdk, http, penalty):
    """Of two tokens, one leads by so little that it comes twice without a penalty and once with it."""
    [cow], [sun] = await tokens_of(http, " cow"), await tokens_of(http, " sun")
    extra = {"allowed_token_ids": [cow, sun], "diffusion": {"block_length": 1}}
    pairs = set()
    for lead in range(-12, 12, 2):
        body = {"prompt": SORT, "max_tokens": 2, "logit_bias": {str(sun): lead}, "extra_body": extra}
        plain = await sdk.complete(**body)
        penalised = await sdk.complete(**body, **penalty)
        pairs.add((*texts(plain), *texts(penalised)))
    assert {(" cow cow", " cow sun"), (" sun sun", " sun cow")} & pairs, pairs


async def test_what_the_prompt_holds_is_a_repetition(sdk):
    answer = await sdk.complete(prompt=SORT, max_tokens=16, extra_body={"repetition_penalty": 1e6})
    assert not set(answer.choices[0].text.split()) & {"3", "5", "7", "12", "12."}


async def test_greedy_by_another_name(sdk):
    greedy = texts(await sdk.complete(prompt=STORY, max_tokens=48))
    assert texts(await sdk.complete(prompt=STORY, max_tokens=48, temperature=2, top_p=0)) == greedy
