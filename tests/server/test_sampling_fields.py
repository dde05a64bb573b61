"""What a request says of drawing tokens: each field reaches the engine, or is a 400 that names it."""

import pytest

from engine import FinishReason, SamplingParams
from server.convert import seeds


def text_of(submission):
    return bytes(submission.prompt_ids).decode()


@pytest.fixture(params=["completions", "chat"])
def ask(api, request):
    """Posts to either route: what they share works alike."""
    return api.complete if request.param == "completions" else api.chat


def texts(response):
    return [choice.get("text") or choice["message"]["content"] for choice in response.json()["choices"]]


async def test_every_field_reaches_the_engine(ask, engine):
    response = await ask(
        max_tokens=20,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=-1,
        frequency_penalty=0.5,
        repetition_penalty=1.1,
        logit_bias={"5": -100, "007": 2.5},
        allowed_token_ids=[1, 2, 3],
        bad_words=["no", " never"],
        min_tokens=3,
        seed=11,
        stop_token_ids=[4],
        ignore_eos=True,
    )
    assert response.status_code == 200, response.text
    (submission,) = engine.submissions
    assert submission.sampling == SamplingParams(
        max_tokens=20,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=-1,
        frequency_penalty=0.5,
        repetition_penalty=1.1,
        logit_bias=((5, -100.0), (7, 2.5)),
        allowed_ids=frozenset({1, 2, 3}),
        bad_words=tuple(tuple(word.encode()) for word in ("no", "never", " no", " never")),
        min_tokens=3,
        seed=11,
        stop_ids=frozenset({4}),
        ignore_eos=True,
    )


@pytest.mark.parametrize("neutral", [None, "default"])
async def test_null_is_the_same_as_nothing(ask, engine, neutral):
    defaults = {
        "n": 1,
        "top_p": 1,
        "top_k": 0,
        "min_p": 0,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "repetition_penalty": 1,
        "logit_bias": {},
        "bad_words": [],
        "min_tokens": 0,
        "stop": [],
        "stop_token_ids": [],
        "include_stop_str_in_output": False,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "return_token_ids": False,
        "return_tokens_as_token_ids": False,
        "logprobs": None,
        "allowed_token_ids": None,
        "temperature": None,
        "stream": False,
        "stream_options": None,
        "diffusion": None,
    }
    body = defaults if neutral else dict.fromkeys(defaults)
    assert (await ask(max_tokens=16, seed=1, **body)).status_code == 200
    (submission,) = engine.submissions
    assert submission.sampling == SamplingParams(max_tokens=16, seed=1)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"\N{ARABIC-INDIC DIGIT THREE}": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ({"bad_words": "no"}, "bad_words"),
        ({"bad_words": [""]}, "bad_words"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"bad_words": ["a"] * 129}, "bad_words"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"return_token_ids": "yes"}, "return_token_ids"),
    ],
)
async def test_a_bad_value_names_its_field(ask, api, engine, body, param):
    error = api.error_of(await ask(**body), 400)
    assert error["param"].partition(".")[0] == param
    assert param in error["message"]
    assert not engine.streams


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 21}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": 5}, "suffix"),
        ({"echo": "yes"}, "echo"),
    ],
)
async def test_a_bad_value_of_completions_names_its_field(api, engine, body, param):
    assert (await api.error(400, **body))["param"] == param
    assert not engine.streams


async def test_the_engines_words_are_told_in_the_apis(ask, api, engine):
    error = api.error_of(await ask(allowed_token_ids=[300]), 400)
    assert error["param"] == "allowed_token_ids"


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


async def test_the_stop_string_may_stay(ask, engine):
    engine.script = lambda _: ["one E", "ND two"]
    response = await ask(stop="END", include_stop_str_in_output=True)
    assert texts(response) == ["one END"]
    assert response.json()["choices"][0]["stop_reason"] == "END"


async def test_no_stop_string_is_looked_for_among_the_least_tokens(ask, engine):
    engine.script = lambda _: ["EN", "D END END"]
    assert texts(await ask(stop="END", min_tokens=4)) == ["END "]


async def test_the_reason_for_a_stop(ask, engine):
    def stopped_by(stop_id):
        return lambda stream: stream.put("one", FinishReason.STOP, stop_id)

    for stop_id, reason in ((4, 4), (256, None)):
        play = stopped_by(stop_id)
        engine.play = play
        [choice] = (await ask(stop_token_ids=[4])).json()["choices"]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", reason)


async def test_special_tokens_may_stay(ask, engine):
    engine.script = lambda _: [[97, 256, 98]]
    assert texts(await ask()) == ["ab"]
    assert texts(await ask(skip_special_tokens=False)) == ["a<|endoftext|>b"]


async def test_token_ids(ask, engine):
    engine.script = lambda _: ["on", "e"]
    [choice] = (await ask(return_token_ids=True)).json()["choices"]
    assert choice["token_ids"] == list(b"one")
    assert choice["prompt_token_ids"] == list(engine.submissions[0].prompt_ids)
    assert "token_ids" not in (await ask()).json()["choices"][0]


async def test_token_ids_in_a_stream(api, engine):
    engine.script = lambda _: ["on", "e"]
    events = await api.stream(return_token_ids=True, n=2)
    for index in (0, 1):
        parts = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert [part["token_ids"] for part in parts] == [list(b"on"), list(b"e")]
        assert [part.get("prompt_token_ids") for part in parts] == [[97, 98], None]


async def test_special_tokens_are_added_unless_unwanted(api, engine, tokenizer, monkeypatch):
    given = []
    encode = tokenizer._backend.encode_batch_fast

    class Backend:
        def __getattr__(self, name):
            return getattr(tokenizer_backend, name)

        def encode_batch_fast(self, texts, add_special_tokens):
            given.append(add_special_tokens)
            return encode(texts, add_special_tokens=add_special_tokens)

    tokenizer_backend = tokenizer._backend
    monkeypatch.setattr(tokenizer, "_backend", Backend())
    await api.complete()
    await api.complete(add_special_tokens=False)
    await api.chat()
    await api.chat(add_special_tokens=True)
    assert given == [True, False, False, True]
