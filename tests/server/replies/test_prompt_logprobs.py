"""`echo` and `logprobs`: the prompt's tokens, each scored with itself masked."""

import asyncio
from dataclasses import replace
from operator import itemgetter

import pytest

from engine import EngineUnavailable, FinishReason, Hole
from server.replies.forwards import PATIENCE_SECONDS
from server.replies.prompt_logprobs import MAX_IN_FLIGHT

MASK = 256


@pytest.fixture(autouse=True)
def idle(engine):
    engine.stats = replace(engine.stats, waiting=0)


def said(text):
    return [None, *(-byte / 256 for byte in text.encode()[1:])]


@pytest.mark.parametrize("prompt", ["abc", [97, 98, 99]])
async def test_a_prompt_alone(api, engine, prompt):
    answer = (await api.complete(prompt=prompt, echo=True, logprobs=1, max_tokens=0)).json()
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "abc",
            "logprobs": {
                "tokens": ["a", "b", "c"],
                "token_logprobs": said("abc"),
                "top_logprobs": [None, {"\x00": 0.0, "b": -98 / 256}, {"\x00": 0.0, "c": -99 / 256}],
                "text_offset": [0, 1, 2],
            },
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 0)
    assert usage["diffusion"]["forwards"] == 4, "two for each token that was scored"


async def test_bytes_that_are_no_character_stand_each_at_its_place(api):
    """A lone continuation byte is replaced at once; a first byte when the next token shows that it stays alone."""
    answer = (await api.complete(prompt=[158, 198, 64], echo=True, logprobs=0, max_tokens=0)).json()
    [choice] = answer["choices"]
    assert choice["text"] == "\ufffd\ufffd@"
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
async def test_token_ids_are_the_answers(api, engine, max_tokens):
    engine.script = lambda _: ["def"[:max_tokens]]
    body = {"prompt": "abc", "echo": True, "logprobs": 0, "max_tokens": max_tokens, "return_token_ids": True}
    [choice] = (await api.complete(**body)).json()["choices"]
    assert choice["text"] == "abcdef"[: 3 + max_tokens]
    assert choice["logprobs"]["tokens"] == [*choice["text"]], "both are scored"
    assert choice["token_ids"] == list(b"def"[:max_tokens])
    assert choice["prompt_token_ids"] == list(b"abc")
    parts = [event["choices"][0] for event in await api.stream(**body)]
    assert [id_ for part in parts for id_ in part["token_ids"]] == choice["token_ids"]


async def test_what_the_engine_is_asked(api, engine):
    await api.complete(prompt="abc", echo=True, logprobs=2, max_tokens=0, temperature=1.5, seed=3, logit_bias={"5": 1})
    first, second = engine.submissions
    assert (list(first.prompt_ids), first.holes) == (list(b"ac"), (Hole(1, 1),))
    assert (list(second.prompt_ids), second.holes) == (list(b"ab"), (Hole(2, 1),))
    assert (first.sampling.allowed_ids, second.sampling.allowed_ids) == ({98}, {99})
    for submission in (first, second):
        assert (submission.sampling.max_tokens, submission.sampling.logprobs) == (1, 2)
        assert (submission.sampling.temperature, submission.sampling.logit_bias) == (0, ())
        assert (submission.diffusion.cache, submission.diffusion.unmask) == ("none", "fixed")
    assert first.request_id != second.request_id


async def test_one_token_more(api, engine):
    engine.script = lambda _: ["d"]
    [choice] = (await api.complete(prompt="abc", echo=True, logprobs=0, max_tokens=1)).json()["choices"]
    assert choice["text"] == "abcd"
    assert choice["logprobs"]["token_logprobs"] == said("abcd")
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]
    assert choice["finish_reason"] == "length"


async def test_the_one_token_more_is_there_even_if_it_ends_the_answer(api, engine):
    engine.script = lambda _: [[256]]
    [choice] = (await api.complete(prompt="abc", echo=True, logprobs=0, max_tokens=1)).json()["choices"]
    assert choice["text"] == "abc"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "<|endoftext|>"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    generating = engine.submissions[0]
    assert generating.sampling.ignore_eos
    assert generating.diffusion.block_length == 1, "a block of 32 might not fit behind a long prompt"

    engine.script = lambda _: ["d"]
    [choice] = (await api.complete(prompt="abc", echo=True, logprobs=0, max_tokens=1, stop_token_ids=[100])).json()[
        "choices"
    ]
    assert choice["text"] == "abc"
    assert choice["logprobs"]["tokens"] == list("abcd")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", 100)


async def test_longer_answers_are_scored_as_well(api, engine):
    engine.script = lambda _: ["de", "f"]
    events = await api.stream(prompt="abc", echo=True, logprobs=0, max_tokens=3)
    parts = [event["choices"][0] for event in events]
    assert [part["text"] for part in parts] == ["abcde", "f"]
    assert [entry for part in parts for entry in part["logprobs"]["token_logprobs"]] == said("abcdef")
    assert [offset for part in parts for offset in part["logprobs"]["text_offset"]] == [0, 1, 2, 3, 4, 5]


async def test_lm_eval_reads_it(api, engine):
    """As `lm_eval.models.openai_completions` does: several prompts of ids, the last token taken off."""
    engine.script = lambda _: [[256]]
    prompts, context_lengths = [[97, 98, 99, 1], [0, 0], [5, 6, 7]], [2, 1, 1]
    answer = (await api.complete(prompt=prompts, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)).json()
    results = []
    for choice, length in zip(sorted(answer["choices"], key=itemgetter("index")), context_lengths, strict=True):
        scores = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        is_greedy = all(score == max(top.values()) for score, top in zip(scores, tops, strict=True))
        results.append((sum(scores), is_greedy))
    assert results == [(-100 / 256, False), (0.0, True), (-13 / 256, False)]


async def test_each_prompt_is_scored_once(api, engine):
    engine.script = lambda _: ["d"]
    answer = (await api.complete(prompt=["ab", "abc"], echo=True, logprobs=0, max_tokens=1, n=2)).json()
    assert [choice["logprobs"]["tokens"] for choice in answer["choices"]] == [[*"abd"]] * 2 + [[*"abcd"]] * 2
    assert sum(bool(submission.holes) for submission in engine.submissions) == 1 + 2


async def test_special_tokens_and_masks(api, app):
    """Special tokens are scored as any other; what is masked already cannot be masked."""
    app.state.service.submitter._scorer._mask_id = 255
    answer = (await api.complete(prompt=[97, 256, 255, 98], echo=True, logprobs=0, max_tokens=0)).json()
    [choice] = answer["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, None, -98 / 256]
    assert choice["logprobs"]["tokens"] == ["a", "<|endoftext|>", r"bytes:\xff", "b"]
    assert choice["text"] == "a<|endoftext|>\ufffdb"


async def test_echo_without_logprobs_scores_nothing(api, engine):
    [choice] = (await api.complete(prompt="abc", echo=True)).json()["choices"]
    assert choice["text"] == "abcone two"
    assert len(engine.streams) == 1
    [choice] = (await api.complete(prompt=["abc", "d"], echo=True, max_tokens=0)).json()["choices"][:1]
    assert (choice["text"], choice["logprobs"]) == ("abc", None)
    assert len(engine.streams) == 1
    assert "".join(event["choices"][0]["text"] for event in await api.stream(echo=True)) == "abone two"


@pytest.mark.parametrize(
    ("prompt", "param"), [("", "prompt"), ([300], "prompt"), ([[97], [300]], "prompt"), ([97] * 129, "prompt")]
)
async def test_prompts_are_checked_even_if_the_engine_does_not_see_them(api, prompt, param):
    assert (await api.error(400, prompt=prompt, echo=True, max_tokens=0))["param"] == param


@pytest.mark.parametrize("prompt", [[2**62], [[97], [2**32]], [257], [97] * 129])
@pytest.mark.parametrize("extra", [{}, {"logprobs": 0}, {"suffix": "yz"}])
async def test_ids_are_checked_before_they_are_read(api, tokenizer, monkeypatch, prompt, extra):
    """A hundred thousand of them take a while, and the tokenizer knows none of 2**32 and more."""

    def decode(ids):
        raise AssertionError("a prompt was read that the model cannot take")

    monkeypatch.setattr(tokenizer, "decode", decode)
    assert (await api.error(400, prompt=prompt, echo=True, **extra))["param"] == "prompt"


async def test_what_is_only_echoed_is_bounded_too(api, engine):
    """4 requests that run and 4 that wait are all that this engine takes."""
    assert len((await api.complete(n=8, echo=True, max_tokens=0)).json()["choices"]) == 8
    assert (await api.error(400, n=9, echo=True, max_tokens=0))["param"] == "n"
    assert (await api.error(400, prompt=["a"] * 9, echo=True, max_tokens=0))["param"] == "prompt"


async def test_few_are_in_flight(api, engine):
    engine.script = None
    answer = asyncio.create_task(api.complete(prompt=[97] * 50, echo=True, logprobs=0, max_tokens=0))
    await engine.submitted.wait()
    await asyncio.sleep(0.05)
    assert len(engine.streams) == MAX_IN_FLIGHT
    done = 0
    while done < 49:
        for stream in engine.streams[done:]:
            stream.put(b"a", FinishReason.LENGTH)
            done += 1
        await asyncio.sleep(0.01)
        assert len(engine.streams) <= done + MAX_IN_FLIGHT
    assert (await answer).json()["choices"][0]["logprobs"]["token_logprobs"] == [None] + [-97 / 256] * 49


async def test_a_full_queue_is_waited_for(api, engine):
    engine.places = 0
    answer = asyncio.create_task(api.complete(prompt="abc", echo=True, logprobs=0, max_tokens=0))
    await asyncio.sleep(0.1)
    assert not answer.done()
    engine.places = 8
    assert (await answer).status_code == 200


async def test_one_looks_at_a_full_queue_for_all(api, engine):
    """64 clients of lm-eval would otherwise look 50,000 times a second, and nothing else would be answered."""
    looks = []

    class Watched(type(engine)):
        @property
        def num_waiting(self):
            looks.append(self)
            return 3

    engine.__class__ = Watched
    answers = [
        asyncio.create_task(api.complete(prompt="a" * 20, echo=True, logprobs=0, max_tokens=0)) for _ in range(4)
    ]
    async with asyncio.timeout(10):
        while not looks:  # their prompts are being read
            await asyncio.sleep(PATIENCE_SECONDS)
    await asyncio.sleep(10 * PATIENCE_SECONDS)
    assert len(looks) <= 12
    engine.__class__ = Watched.__base__
    assert [(await answer).status_code for answer in answers] == [200] * 4


async def test_half_of_the_queue_is_left_to_others(api, engine):
    engine.stats = replace(engine.stats, waiting=2)
    answer = asyncio.create_task(api.complete(prompt="abc", echo=True, logprobs=0, max_tokens=0))
    await asyncio.sleep(0.1)
    assert not engine.streams
    engine.stats = replace(engine.stats, waiting=1)
    assert (await answer).status_code == 200


async def test_a_queue_that_takes_nothing_any_more_is_not_waited_for(api, engine):
    engine.stats, engine.accepting = replace(engine.stats, waiting=4), False
    await api.error(503, prompt="abc", echo=True, logprobs=0, max_tokens=0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_takes_the_rest_along(api, engine, stream):
    def play(fake):
        if fake.submission.holes and fake.submission.holes[0].offset == 2:
            fake.play(["", EngineUnavailable("gone")])

    engine.play, engine.script = play, None
    response = await api.complete(prompt="abcde", echo=True, logprobs=0, max_tokens=1, stream=stream)
    api.error_of(response, 503)
    assert all(fake.aborted.is_set() for fake in engine.streams if fake.submission.holes != (Hole(2, 1),))


async def test_other_families_cannot(api, engine):
    engine.can_fill = False
    error = await api.error(400, prompt="abc", echo=True, logprobs=0, max_tokens=1)
    assert error["param"] == "prompt"
    assert engine.streams[0].aborted.is_set()
