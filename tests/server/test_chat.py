"""POST /v1/chat/completions: conversations through the model's template, messages and deltas back."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from engine import FinishReason
from server.schemas import TemplateRequest
from server.text.tokenizer import Tokenizer

JSON = {"content-type": "application/json"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": [2]}'}}
REFUSAL = {"type": "refusal", "refusal": "I cannot."}


def prompt_of(engine, number=-1):
    return bytes(engine.submissions[number].prompt_ids).decode()


async def stream(api, **body):
    response = await api.chat(stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return api.events_of(response.text)


async def test_a_whole_answer(api, engine):
    response = await api.chat(model="fake", max_tokens=8)
    answer = response.json()
    assert prompt_of(engine) == "<user>hi<assistant>"
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer.pop("system_fingerprint").startswith("fp_")
    usage = answer.pop("usage")
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (19, 7, 26)
    assert answer == {
        "object": "chat.completion",
        "model": "fake",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "one two", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
    }


async def test_a_stream(api, engine):
    engine.script = lambda _: ["one ", "", "two", FinishReason.STOP]
    events = await stream(api)
    choices = [event["choices"][0] for event in events]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "one "},
        {"content": ""},
        {"content": "two"},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert all(event["object"] == "chat.completion.chunk" and "usage" not in event for event in events)
    for shared in ("id", "created", "model", "system_fingerprint"):
        assert len({event[shared] for event in events}) == 1


async def test_every_choice_of_a_stream_has_one_role_and_one_end(api):
    events = await stream(api, n=3, stream_options={"include_usage": True})
    *chunks, usage = events
    for index in range(3):
        own = [event["choices"][0] for event in chunks if event["choices"][0]["index"] == index]
        assert [choice["delta"].get("role") for choice in own] == ["assistant", None, None]
        assert "".join(choice["delta"]["content"] for choice in own) == "one two"
        assert [choice["finish_reason"] for choice in own] == [None, None, "length"]
    assert all(event["usage"] is None for event in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 19


async def test_running_usage(api):
    events = await stream(api, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert [event["usage"]["completion_tokens"] for event in events] == [0, 4, 7, 7]
    assert {event["usage"]["prompt_tokens"] for event in events} == {19}, "from the first chunk on"


async def test_conversations(api, engine):
    await api.chat(
        messages=[
            {"role": "developer", "content": "be short"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "tool", "content": "4", "tool_call_id": "x"},
            {"role": "function", "content": "5", "name": "f"},
        ]
    )
    assert prompt_of(engine) == (
        "<system>be short<user>a\nb<assistant>"
        "<user><tool_response>\n4\n</tool_response>\n<tool_response>\n5\n</tool_response><assistant>"
    )


def test_kwargs_are_read_no_further_than_they_may_be_long():
    """Four megabytes of them are a moment in which nobody else is served."""
    read = []

    class Watched(dict):
        def items(self):
            for number in range(100_000):
                read.append(number)
                yield f"name{number}", "value"

    with pytest.raises(ValidationError, match="longer than 8192"):
        TypeAdapter(TemplateRequest).validate_python({"chat_template_kwargs": {"a": Watched(b=1)}})
    assert len(read) < 8192


async def test_the_last_message_may_go_on(api, engine):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well"}]
    await api.chat(messages=messages, continue_final_message=True)
    assert prompt_of(engine) == "<user>hi<assistant>well"
    await api.chat(messages=messages, add_generation_prompt=False)
    assert prompt_of(engine) == "<user>hi<assistant>well"
    error = api.error_of(await api.chat(continue_final_message=True, add_generation_prompt=True), 400)
    assert error["param"] == "add_generation_prompt"


async def test_the_template_has_variables(api, engine):
    await api.chat(chat_template_kwargs={"shout": "HEY"}, reasoning_effort="low")
    assert prompt_of(engine) == "<user>hiHEYlow<assistant>"


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "tools", "add_generation_prompt", "messages", "self"])
async def test_the_template_itself_is_not_a_variable(api, engine, name):
    error = api.error_of(await api.chat(chat_template_kwargs={name: "{{ 1 }}"}), 400)
    assert error["param"] == "chat_template_kwargs"
    assert name in error["message"]
    assert not engine.streams


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": {}, "text": "hi"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "refuse"}]}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages.0.tool_calls.0.function"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"type": "custom"}]}]}, "messages.0.tool_calls.0.type"),
        ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages.0.function_call.name"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "user", "content": "a", "refusal": "b"}]}, "messages.0.refusal"),
        ({"messages": [{"role": "user", "content": [REFUSAL]}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": [{"type": "refusal"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "messages.0.audio"),
        ({"messages": [{"role": "user", "text_or_parts": "a"}]}, "messages.0"),
        ({"service_tier": "x" * 513}, "service_tier"),
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {f"a{i}": "x" for i in range(17)}}, "metadata"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 1000}, "max_tokens"),
        ({"max_completion_tokens": 1000, "max_tokens": 5}, "max_completion_tokens"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {f"a{i}": 1 for i in range(33)}}, "chat_template_kwargs"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"model": 5}, "model"),
    ],
)
async def test_a_bad_value_names_its_field(api, engine, body, param):
    error = api.error_of(await api.chat(**body), 400)
    assert error["param"] == param
    assert not engine.streams


@pytest.mark.parametrize(
    "body",
    [
        '{"messages": [{"role": "user", "content": "\\ud800"}]}',
        '{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"shout": "\\ud800"}}',
        '{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"shout": NaN}}',
    ],
)
async def test_what_no_template_should_see(api, engine, body):
    response = await api.client.post("/v1/chat/completions", content=body, headers=JSON)
    api.error_of(response, 400)
    assert not engine.streams


async def test_where_nobody_asked_for_a_length_it_is_the_conversation_that_is_too_long(api):
    error = api.error_of(await api.chat(messages=[{"role": "user", "content": "x" * 112}]), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


async def test_a_long_conversation_is_refused_before_it_is_tokenised(api, engine):
    messages = [{"role": "user", "content": "x" * 1500}, {"role": "user", "content": "x" * 1500}]
    error = api.error_of(await api.chat(messages=messages), 400)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"


async def test_a_model_without_a_template_says_so(tokenizer_folder, app, api):
    plain = Tokenizer.load(tokenizer_folder)
    plain._tokenizer.chat_template = None
    app.state.service.conversations._tokenizer = plain
    error = api.error_of(await api.chat(), 400)
    assert "chat template" in error["message"]


@pytest.mark.parametrize(
    ("body", "max_tokens"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({}, 109),  # 128 tokens hold 19 of the prompt
        ({"max_tokens": -1}, 109),
        ({"max_tokens": 5, "max_completion_tokens": -1}, 5),
        ({"max_tokens": -1, "max_completion_tokens": -1.0}, 109),
        ({"diffusion": {"block_length": 10}}, 109),
        ({"diffusion": {"unmask": "cad"}}, 109),
        ({"messages": [{"role": "user", "content": "x" * 80}]}, 31),
        ({"messages": [{"role": "user", "content": "x" * 110}]}, 1),
    ],
)
async def test_how_many_tokens(api, engine, body, max_tokens):
    response = await api.chat(**body)
    assert response.status_code == 200, response.text
    assert engine.submissions[-1].sampling.max_tokens == max_tokens


async def test_the_default_length_is_a_setting(app, api, engine):
    object.__setattr__(app.state.service, "default_max_tokens", 20)
    await api.chat()
    assert engine.submissions[-1].sampling.max_tokens == 20


async def test_errors_are_those_of_completions(api, engine):
    assert api.error_of(await api.chat(model="gpt"), 404)["code"] == "model_not_found"
    engine.places = 0
    assert api.error_of(await api.chat(), 429)["code"] == "rate_limit_exceeded"
    response = await api.client.post("/v1/chat/completions", content=json.dumps({}), headers={"content-type": "a/b"})
    api.error_of(response, 415)


async def test_a_stop_string_cuts_the_message(api, engine):
    engine.script = lambda _: ["one E", "ND two"]
    [choice] = (await api.chat(stop=["END"])).json()["choices"]
    assert choice["message"]["content"] == "one "
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "END")
    events = await stream(api, stop="END")
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == "one "
    assert events[-1]["choices"][0]["stop_reason"] == "END"
