"""What a request says of drawing tokens: each field reaches the engine, or is a 400 that names it."""

import pytest
from tokenizers import processors

from engine import FinishReason, SamplingParams
from server.text.tokenizer import Tokenizer

from .fake_engine import EOS


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


async def test_token_ids(api, engine):
    """The prompt's stand where vLLM has them: a chat has one for all its choices."""
    engine.script = lambda _: ["on", "e"]
    completion = (await api.complete(return_token_ids=True)).json()
    chat = (await api.chat(return_token_ids=True, n=2)).json()
    for choice in (*completion["choices"], *chat["choices"]):
        assert choice["token_ids"] == list(b"one")
    assert completion["choices"][0]["prompt_token_ids"] == list(engine.submissions[0].prompt_ids)
    assert "prompt_token_ids" not in completion
    assert chat["prompt_token_ids"] == list(engine.submissions[1].prompt_ids)
    assert all("prompt_token_ids" not in choice for choice in chat["choices"])


async def test_token_ids_are_left_out_where_nobody_asked(ask):
    answer = (await ask()).json()
    assert "prompt_token_ids" not in answer
    assert answer["choices"][0].keys().isdisjoint({"token_ids", "prompt_token_ids"})


async def test_token_ids_in_a_stream(api, engine):
    engine.script = lambda _: ["on", "e"]
    events = await api.stream(return_token_ids=True, n=2)
    for index in (0, 1):
        parts = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert [part["token_ids"] for part in parts] == [list(b"on"), list(b"e")]
        assert [part.get("prompt_token_ids") for part in parts] == [[97, 98], None]


async def test_token_ids_in_a_streamed_chat(api, engine):
    engine.script = lambda _: ["on", "e"]
    first, *others = api.events_of((await api.chat(stream=True, return_token_ids=True, n=2)).text)
    assert first["prompt_token_ids"] == list(engine.submissions[0].prompt_ids)
    assert all("prompt_token_ids" not in event for event in others)
    for index in (0, 1):
        parts = [event["choices"][0] for event in others if event["choices"][0]["index"] == index]
        assert [part["token_ids"] for part in parts if "token_ids" in part] == [list(b"on"), list(b"e")]


async def test_special_tokens_are_added_unless_unwanted(app, api, engine, tokenizer_folder):
    framing = Tokenizer.load(tokenizer_folder)
    framing._backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", EOS)]
    )
    app.state.service.prompts._tokenizer = app.state.service.conversations._tokenizer = framing
    await api.complete()
    await api.complete(add_special_tokens=False)
    await api.chat()
    await api.chat(add_special_tokens=True)
    assert [submission.prompt_ids[0] == EOS for submission in engine.submissions] == [True, False, False, True]
