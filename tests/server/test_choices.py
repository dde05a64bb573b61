"""Several answers to a prompt: their seeds, their number, the best of them."""

from dataclasses import replace
from threading import get_ident

import pytest

from server.prompts.convert import seeds
from server.replies.passage import Passage
from server.threads import MAX_TOKENS_ON_LOOP


def text_of(submission):
    return bytes(submission.prompt_ids).decode()


async def test_n_choices_of_each_prompt(api, engine):
    engine.script = lambda submission: [f"{text_of(submission)}{submission.request_id[-1]}"]
    answer = (await api.complete(prompt=["a", "b"], n=3)).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(
        enumerate(["a0", "a1", "a2", "b3", "b4", "b5"])
    )
    assert answer["usage"]["prompt_tokens"] == 2, "each prompt counts once"
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["diffusion"]["forwards"] == 12


async def test_n_choices_in_a_stream(api, engine):
    engine.script = lambda submission: [f"{text_of(submission)}{submission.request_id[-1]}", "!"]
    events = await api.stream(prompt=["a", "b"], n=2, stream_options={"include_usage": True})
    *chunks, usage = events
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "a0!", 1: "a1!", 2: "b2!", 3: "b3!"}
    ends = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1, 2, 3]
    assert usage["usage"]["prompt_tokens"] == 2


async def test_choices_have_seeds_of_their_own(ask, engine):
    await ask(n=4, seed=5)
    await ask(n=2, seed=5)
    await ask(seed=5)
    await ask(n=2)
    drawn = [submission.sampling.seed for submission in engine.submissions]
    four, two, one, unseeded = drawn[:4], drawn[4:6], drawn[6:7], drawn[7:]
    assert four[:1] == two[:1] == one == [5]
    assert four[:2] == two
    assert len({*four, *unseeded}) == 6


async def test_prompts_without_a_seed_have_seeds_of_their_own(api, engine):
    await api.complete(prompt=["a", "a"])
    await api.complete(prompt=["a", "a"], seed=3)
    drawn = [submission.sampling.seed for submission in engine.submissions]
    assert drawn[0] != drawn[1]
    assert drawn[2:] == [3, 3]


def test_seeds_fit_the_engine():
    assert all(0 <= seed < 2**63 for seed in seeds(-1, 128)[1:])
    assert len(set(seeds(0, 128) + seeds(1, 128))) == 256


async def test_more_choices_than_there_are_places_can_never_be_served(ask, api, engine):
    error = api.error_of(await ask(n=9), 400)
    assert error["param"] == "n"
    assert "8" in error["message"]
    assert not engine.streams


@pytest.mark.parametrize(
    ("body", "param"), [({"prompt": ["a"] * 9}, "prompt"), ({"prompt": ["a"] * 3, "best_of": 3}, "best_of")]
)
async def test_more_prompts_than_there_are_places_can_never_be_served(api, engine, body, param):
    assert (await api.error(400, **body))["param"] == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 4, "logprobs": 3, "max_tokens": 16}, None),
        ({"n": 4, "logprobs": 3, "max_tokens": 17}, "logprobs"),
        ({"prompt": "a" * 16, "n": 2, "logprobs": 3, "max_tokens": 16, "echo": True}, None),
        ({"prompt": "a" * 17, "n": 2, "logprobs": 3, "max_tokens": 16, "echo": True}, "logprobs"),
        ({"prompt": ["a", "b"], "logprobs": 3, "max_tokens": 32}, None),
        ({"prompt": ["a", "b"], "logprobs": 3, "suffix": "c", "max_tokens": 33}, "logprobs"),
        ({"best_of": 4, "max_tokens": 65}, "best_of"),
        ({"n": 4, "max_tokens": 65}, None),
    ],
)
async def test_log_probabilities_are_counted_before_they_are_made(api, engine, monkeypatch, body, param):
    """Hundreds of choices with twenty alternatives for each token would take gigabytes."""
    monkeypatch.setattr("server.replies.generation.MAX_LOGPROBS_OF_ANSWER", 256)
    engine.stats = replace(engine.stats, waiting=0)
    if param:
        assert (await api.error(400, **body))["param"] == param
        assert not engine.streams
    else:
        assert (await api.complete(**body)).status_code == 200


async def test_many_tokens_are_read_and_checked_beside_the_event_loop(api, engine, monkeypatch):
    threads = {}

    def watched(owner, name):
        method = getattr(owner, name)

        def call(*arguments, **options):
            threads[name] = get_ident()
            return method(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    watched(engine, "prepare")
    watched(Passage, "push")
    engine.script = lambda _: ["a" * (MAX_TOKENS_ON_LOOP + 1)]
    monkeypatch.setattr("server.replies.generation.IDS_PER_TOKEN", 1)
    await api.complete(prompt="a" * 100, n=4)
    assert threads.keys() == {"prepare", "push"}
    assert get_ident() not in threads.values()
    engine.script = lambda _: ["a"]
    await api.complete(logprobs=1)
    assert set(threads.values()) == {get_ident()}, "few are, without a hop to a thread"


async def test_the_best_of_several(api, engine):
    """Token t has the log-probability -t/256: the smaller bytes are the more probable ones."""
    scripts = iter(["zz", "ab", "aa", "", "b!", "yy", "zz", "xx"])
    engine.script = lambda _: [next(scripts)]
    answer = (await api.complete(prompt=["a", "b"], n=2, best_of=4)).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "aa"),
        (1, "ab"),
        (2, "b!"),
        (3, "xx"),
    ]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 14, "all that were drawn"
    assert answer["usage"]["prompt_tokens"] == 2


async def test_best_of_n_is_n(api, engine):
    events = await api.stream(n=2, best_of=2)
    assert {event["choices"][0]["index"] for event in events} == {0, 1}
    assert all(submission.sampling.logprobs is None for submission in engine.submissions)
