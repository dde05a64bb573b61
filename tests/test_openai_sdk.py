"""Every feature of the API as OpenAI's own client meets it, sync and async, over a real socket, with the demo model."""

import asyncio
import math
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace

import httpx
import openai
import pytest

from engine import DEMO_MODEL, EngineConfig, load

SORT = "Question: Sort these numbers: 7 3 12 5.\nAnswer:"
STORY = "Question: Tell me a story about Mia, Leo and a kite.\nAnswer:"
CHAT = [{"role": "user", "content": "Sort these numbers: 7 3 12 5."}]
TALE = [{"role": "user", "content": "Tell me a story about Mia, Leo and a kite."}]
SMALL_BLOCKS = {"diffusion": {"block_length": 4}}


@pytest.fixture(scope="module")
def url(serve):
    with serve("demo") as url:
        yield url


@pytest.fixture(params=["sync", "async"])
async def sdk(request, url):
    """`await sdk.complete(...)` and `await sdk.chat(...)` by either client; streams come as lists of chunks."""
    options = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
    if request.param == "sync":
        with openai.OpenAI(**options) as client:

            def gather(create, body):
                answer = create(model="demo", **body)
                return list(answer) if body.get("stream") else answer

            yield SimpleNamespace(
                complete=lambda **body: asyncio.to_thread(gather, client.completions.create, body),
                chat=lambda **body: asyncio.to_thread(gather, client.chat.completions.create, body),
            )
    else:
        async with openai.AsyncOpenAI(**options) as client:

            async def collect(create, body):
                answer = await create(model="demo", **body)
                return [chunk async for chunk in answer] if body.get("stream") else answer

            yield SimpleNamespace(
                complete=lambda **body: collect(client.completions.create, body),
                chat=lambda **body: collect(client.chat.completions.create, body),
            )


@pytest.fixture
async def http(url):
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


def texts(answer):
    return [choice.text for choice in answer.choices]


def streamed(chunks, index=0):
    """A completion's text from its chunks."""
    return "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == index)


async def test_completions(sdk):
    answer = await sdk.complete(prompt=SORT, max_tokens=32)
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


async def test_chat(sdk):
    answer = await sdk.chat(messages=CHAT)
    assert answer.choices[0].message.content == "Sorted: 3 5 7 12."
    assert answer.choices[0].message.role == "assistant"
    assert (answer.object, answer.choices[0].finish_reason) == ("chat.completion", "stop")


async def test_a_streamed_chat_is_the_whole_one(sdk):
    body = {"messages": TALE, "max_completion_tokens": 64, "temperature": 1, "seed": 3, "n": 2}
    body["extra_body"] = SMALL_BLOCKS
    whole = await sdk.chat(**body)
    *chunks, last = await sdk.chat(**body, stream=True, stream_options={"include_usage": True})
    for index in (0, 1):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert [choice.delta.role for choice in own] == ["assistant"] + [None] * (len(own) - 1)
        assert "".join(choice.delta.content for choice in own) == whole.choices[index].message.content
        assert [choice.finish_reason for choice in own if choice.finish_reason] == [whole.choices[index].finish_reason]
    assert last.usage == whole.usage


async def test_the_clients_own_accumulator(url):
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client,
        client.chat.completions.stream(model="demo", messages=CHAT, max_tokens=32) as stream,
    ):
        final = await stream.get_final_completion()
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].message.content == "Sorted: 3 5 7 12."


async def test_four_choices(sdk):
    body = {"prompt": STORY, "max_tokens": 64, "temperature": 1, "seed": 11}
    four = texts(await sdk.complete(**body, n=4))
    assert len(set(four)) == 4
    assert texts(await sdk.complete(**body, n=4)) == four, "the same four for the same seed"
    assert texts(await sdk.complete(**body)) == four[:1]
    assert texts(await sdk.complete(**{**body, "seed": 12}, n=4)) != four
    del body["seed"]
    assert texts(await sdk.complete(**body)) != texts(await sdk.complete(**body))


async def test_the_best_of_several(sdk):
    body = {"prompt": STORY, "max_tokens": 48, "temperature": 1.5, "seed": 11, "logprobs": 0}
    drawn = (await sdk.complete(**body, n=6)).choices
    best = (await sdk.complete(**body, n=2, best_of=6)).choices

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
    others = [sdk.complete(prompt=STORY, max_tokens=48, **body) for body in neighbours]
    together = await asyncio.gather(*(sdk.complete(**body) for body in asked), *others)
    assert [texts(answer) for answer in together[:2]] == alone
    assert alone[0] != alone[1]


@pytest.mark.parametrize("block_length", [1, 2, 3, 16])
async def test_a_stop_string_is_cut_wherever_blocks_split_it(sdk, block_length):
    body = {"prompt": SORT, "max_tokens": 16, "extra_body": {"diffusion": {"block_length": block_length}}}
    answer = await sdk.complete(**body, stop=["5 7"])
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, choice.stop_reason) == (" Sorted: 3 ", "stop", "5 7")
    assert streamed(await sdk.complete(**body, stop=["5 7"], stream=True)) == " Sorted: 3 "
    body["extra_body"] |= {"include_stop_str_in_output": True}
    assert texts(await sdk.complete(**body, stop="5 7")) == [" Sorted: 3 5 7"]


async def tokens_of(http, text):
    return (await http.post("/tokenize", json={"prompt": text})).json()["tokens"]


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
    for lead in range(-12, 12):
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

    from engine.reference import DenseContext

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
        assert said.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-4)
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
    for diffusion in ({"cache": "none"}, {"cache": "prefix"}, {"cache": "d2"}, {"unmask": "dream"}, {"unmask": "cad"}):
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
    assert answer.choices[0].prompt_token_ids == tokens["tokens"]
    assert answer.usage.prompt_tokens == tokens["count"]
    told = (await http.post("/detokenize", json={"tokens": tokens["tokens"]})).json()["prompt"]
    assert told.startswith("<|startoftext|>")
    assert told.endswith("assistant<|end_header_id|>\n\n")


async def test_the_last_message_may_go_on(sdk):
    messages = [*CHAT, {"role": "assistant", "content": "Sorted: 3 5"}]
    answer = await sdk.chat(messages=messages, max_tokens=8, extra_body={"continue_final_message": True})
    assert answer.choices[0].message.content == " 7 12."


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
    answer = await sdk.chat(messages=[{"role": "user", "content": "cow" + " cow" * (length - 80)}])
    assert answer.usage.completion_tokens <= 80, "what the context holds"


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
        ({"extra_body": {"response_format": {"type": "json_object"}}}, "response_format"),
    ],
)
async def test_a_bad_request_names_its_field(sdk, body, param):
    with pytest.raises(openai.BadRequestError) as error:
        await sdk.complete(**{"prompt": SORT, "max_tokens": 16, **body})
    assert error.value.param == param
    assert error.value.request_id
