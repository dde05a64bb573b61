"""POST /v1/completions: what reaches the engine, what comes back, whole and streamed."""

import asyncio
from dataclasses import fields

import pytest

from engine import DiffusionParams, FinishReason, RequestFailed, resolved
from server.prompts.convert import REPORTS
from server.schemas import DiffusionRequest


def text_of(events, index=0):
    return "".join(choice["text"] for event in events for choice in event["choices"] if choice["index"] == index)


async def test_a_whole_answer(api, engine):
    response = await api.complete(model="fake", max_tokens=8)
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    assert answer.pop("id").startswith("cmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer.pop("system_fingerprint").startswith("fp_")
    assert answer == {
        "object": "text_completion",
        "model": "fake",
        "choices": [{"index": 0, "text": "one two", "logprobs": None, "finish_reason": "length", "stop_reason": None}],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 7,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
            "diffusion": {
                "cache": "dual",
                "unmask": "threshold",
                "lookahead": 32,
                "forwards": 4,
                "rows_computed": 20,
                "visible_tokens": 24,
                "tokens_per_forward": 7 / 4,
            },
        },
    }


async def test_a_stream_has_one_chunk_for_each_block(api, engine):
    engine.script = lambda _: ["one ", "", "two"]
    events = await api.stream()
    assert [event["choices"][0]["text"] for event in events] == ["one ", "", "two"]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "length"]
    assert all(len(event["choices"]) == 1 and event["choices"][0]["logprobs"] is None for event in events)
    assert all("usage" not in event for event in events)
    for shared in ("id", "created", "model", "object", "system_fingerprint"):
        assert len({event[shared] for event in events}) == 1


async def test_a_stream_says_what_it_is(api):
    response = await api.complete(stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"


async def test_usage_comes_last_when_asked_for(api):
    *chunks, last = await api.stream(stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in chunks] == [None, None]
    assert last["choices"] == []
    assert last["usage"] == (await api.complete()).json()["usage"]


async def test_running_usage(api):
    events = await api.stream(stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert [event["usage"]["completion_tokens"] for event in events] == [4, 7, 7]


async def test_running_usage_needs_include_usage(api):
    events = await api.stream(stream_options={"continuous_usage_stats": True})
    assert all("usage" not in event for event in events)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
async def test_every_form_of_prompt(api, engine, prompt, ids):
    answer = (await api.complete(prompt=prompt)).json()
    assert [list(submission.prompt_ids) for submission in engine.submissions] == ids
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(ids)))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))


async def test_several_prompts_share_one_stream(api, engine):
    engine.script = lambda submission: ["<", chr(submission.prompt_ids[0]), ">"]
    events = await api.stream(prompt=["a", "b"], stream_options={"include_usage": True})
    assert text_of(events, 0) == "<a>"
    assert text_of(events, 1) == "<b>"
    ends = [choice["index"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(ends) == [0, 1]
    assert events[-1]["usage"]["completion_tokens"] == 6
    assert events[-1]["usage"]["diffusion"]["tokens_per_forward"] == 6 / 12


async def test_parameters_reach_the_engine(api, engine):
    await api.complete(
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        seed=7,
        stop_token_ids=[3, 4],
        ignore_eos=True,
        diffusion={"cache": "prefix", "block_length": 8, "steps": 4},
    )
    (submission,) = engine.submissions
    assert submission.sampling.max_tokens == 5
    assert submission.sampling.temperature == 0.5
    assert (submission.sampling.top_p, submission.sampling.top_k) == (0.9, 40)
    assert submission.sampling.seed == 7
    assert submission.sampling.stop_ids == {3, 4}
    assert submission.sampling.ignore_eos
    assert submission.diffusion == DiffusionParams(cache="prefix", block_length=8, steps=4, threshold=0.8)


async def test_top_p_of_zero_is_greedy_and_top_k_of_minus_one_is_off(api, engine):
    await api.complete(temperature=1, top_p=0, top_k=-1)
    (submission,) = engine.submissions
    sampling = submission.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 1, 0)


async def test_every_parameter_of_the_engine_is_in_the_api(api, engine):
    given = {"alg": "topk_margin", "alg_temp": 0.5, "eps": 0.01, "factor": 2, "unmask": "dream"}
    await api.complete(diffusion=given)
    (submission,) = engine.submissions
    assert submission.diffusion == resolved(DiffusionParams(**given, threshold=0.8), engine.info.spec)
    assert set(DiffusionRequest.model_fields) - REPORTS == {field.name for field in fields(DiffusionParams)}


async def test_null_is_a_value_where_the_field_says_what_it_means(api, engine):
    await api.complete(diffusion={"lookahead": None, "steps": None, "threshold": None})
    await api.complete(diffusion={"lookahead": 0})
    whole, none = engine.submissions
    assert (whole.diffusion.lookahead, whole.diffusion.steps, whole.diffusion.threshold) == (None, None, 0.8)
    assert (none.diffusion.lookahead, none.diffusion.threshold) == (0, 0.8)


async def test_absent_and_null_are_the_defaults(api, engine):
    names = ("max_tokens", "temperature", "stop_token_ids", "ignore_eos", "stop", "stream", "stream_options", "model")
    nulls = dict.fromkeys(names)
    await api.complete(diffusion={"cache": None}, **nulls)
    await api.complete()
    for submission in engine.submissions:
        assert submission.sampling.max_tokens == 16
        assert submission.sampling.temperature == 0
        assert submission.diffusion == resolved(DiffusionParams(threshold=0.8), engine.info.spec)
    seeds = {submission.sampling.seed for submission in engine.submissions}
    assert len(seeds) == 2, "requests without a seed share one"


@pytest.mark.parametrize(
    ("body", "max_tokens"),
    [
        ({}, [16]),
        ({"max_tokens": -1}, [126]),
        ({"prompt": "x" * 120}, [8]),
        ({"prompt": ["x" * 120, "x" * 110, "x"], "n": 1}, [8, 16, 16]),
        ({"prompt": ["x" * 120, "x"], "max_tokens": -1}, [8, 127]),
        ({"prompt": "a<|fill:3|>", "max_tokens": -1}, [3]),
        ({"suffix": "c", "max_tokens": -1}, [16]),
    ],
)
async def test_where_nobody_asked_for_a_length_it_is_the_room_that_is_left(api, engine, body, max_tokens):
    response = await api.complete(**body)
    assert response.status_code == 200, response.text
    assert [submission.sampling.max_tokens for submission in engine.submissions] == max_tokens


async def test_a_length_that_was_asked_for_is_not_shortened(api, engine):
    error = await api.error(400, prompt="x" * 120, max_tokens=16)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")


async def test_a_prompt_that_leaves_no_room_is_too_long(api, engine):
    for body in ({}, {"max_tokens": -1}):
        assert (await api.error(400, prompt="x" * 128, **body))["code"] == "context_length_exceeded"


async def test_a_stop_string_across_blocks_ends_the_answer(api, engine):
    engine.script = lambda _: ["one E", "ND two", "three"]
    whole = (await api.complete(stop="END")).json()
    assert whole["choices"][0]["text"] == "one "
    assert whole["choices"][0]["finish_reason"] == "stop"
    events = await api.stream(stop=["x", "END"])
    assert [event["choices"][0]["text"] for event in events] == ["one ", ""]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(stream.aborted.is_set() for stream in engine.streams)


@pytest.mark.parametrize("extra", [{}, {"logprobs": 0}, {"include_stop_str_in_output": True}, {"min_tokens": 3}])
async def test_tokens_behind_a_stop_string_are_not_counted(api, engine, extra):
    """As those behind an end-of-text token are not; those of the stop string itself are, as vLLM has it."""
    engine.script = lambda _: ["one E", "ND two", "three"]
    answer = (await api.complete(stop="END", **extra)).json()
    assert answer["usage"]["completion_tokens"] == len("one END")
    assert answer["usage"]["diffusion"]["tokens_per_forward"] == 7 / 4
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await api.stream(stop="END", stream_options=options, **extra)
    assert [event["usage"]["completion_tokens"] for event in events] == [5, 7, 7]


async def test_a_stop_string_ends_one_choice_and_not_the_others(api, engine):
    engine.script = None
    answer = asyncio.create_task(api.complete(prompt=["a", "b"], stop="END"))
    await engine.submitted.wait()
    stopped, other = engine.streams
    stopped.put("one END")
    await asyncio.wait_for(stopped.aborted.wait(), 1)
    other.play(["two"])
    choices = (await answer).json()["choices"]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [("one ", "stop"), ("two", "length")]


async def test_a_character_across_blocks_is_held_back(api, engine):
    euro = "€".encode()
    engine.script = lambda _: [b"1 " + euro[:2], euro[2:], b"!"]
    assert [event["choices"][0]["text"] for event in await api.stream()] == ["1 ", "€", "!"]
    assert (await api.complete()).json()["choices"][0]["text"] == "1 €!"


async def test_a_stop_token_is_a_stop(api, engine):
    engine.script = lambda _: ["hel", "lo", FinishReason.STOP]
    assert (await api.complete()).json()["choices"][0] == {
        "index": 0,
        "text": "hello",
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }


async def test_every_model_name_works_and_comes_back(api):
    assert (await api.complete(model="org/fake")).json()["model"] == "org/fake"
    assert (await api.complete(model="")).json()["model"] == "fake"


async def test_neutral_values_of_unsupported_fields_are_accepted(api):
    neutral = {"n": 1, "best_of": 1, "echo": False, "logprobs": None, "top_p": 1, "top_k": -1, "logit_bias": {}}
    assert (await api.complete(**neutral, presence_penalty=0.0, response_format={"type": "text"})).status_code == 200


async def test_an_unknown_field_is_ignored_and_logged_once(api, caplog):
    for _ in range(2):
        assert (await api.complete(flux="1\n2", user="me")).status_code == 200
    assert [record.getMessage() for record in caplog.records if "unknown" in record.message] == [
        "ignoring the unknown request field 'flux'"
    ]


async def test_an_error_after_the_headers_is_an_event(api, engine, caplog):
    engine.script = lambda _: ["one ", RequestFailed("secret")]
    first, error = await api.stream()
    assert first["choices"][0]["text"] == "one "
    assert error["error"]["type"] == "server_error"
    assert "secret" not in str(error)


async def test_a_failure_of_the_engine_is_a_500(api, engine):
    engine.script = lambda _: ["one ", RequestFailed("secret")]
    response = await api.complete()
    error = api.error_of(response, 500)
    assert error["type"] == "server_error"
    assert response.headers["x-request-id"] in error["message"]
    assert "secret" not in response.text


async def test_one_failed_choice_takes_its_neighbours_along(api, engine):
    engine.script = lambda _: ["one ", RequestFailed("secret")]
    await api.error(500, prompt=["a", "b"])
    assert all(stream.aborted.is_set() for stream in engine.streams)


async def test_an_answer_that_the_shutdown_cut_short_is_a_503(api, engine):
    engine.script = lambda _: ["one ", FinishReason.ABORT]
    assert (await api.error(503))["type"] == "service_unavailable_error"
    events = await api.stream()
    assert events[-1]["error"]["type"] == "service_unavailable_error"
