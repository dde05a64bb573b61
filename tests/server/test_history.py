"""A conversation's history as an application has it, sent back: the official SDK's own messages, and others' calls."""

import json

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion_message_function_tool_call import ChatCompletionMessageFunctionToolCall, Function

from server.text.tokenizer import Tokenizer

TEMPLATE = """\
{% for tool in tools or () %}{{ tool | tojson }}{% endfor %}\
{% for message in messages %}{{ '<' + message.role + '>' + message.content }}\
{% if message.reasoning_content %}{{ '(' + message.reasoning_content + ')' }}{% endif %}\
{% for call in message.tool_calls %}\
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>\
{% endfor %}\
{% endfor %}"""
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def telling(tokenizer_folder):
    """A tokenizer whose template shows everything."""
    tokenizer = Tokenizer.load(tokenizer_folder)
    tokenizer._tokenizer.chat_template = TEMPLATE
    yield tokenizer
    tokenizer.close()


@pytest.fixture
def prompt_of(app, api, engine, telling):
    """The text that a template which shows everything makes of a message behind the user's."""
    app.state.service.conversations._tokenizer = telling

    async def rendered(**message):
        response = await api.chat(messages=[USER, {"role": "assistant", **message}])
        assert response.status_code == 200, response.text
        return telling.decode(engine.submissions[-1].prompt_ids).removeprefix("<user>hi<assistant>")

    return rendered


def written(arguments, name="add"):
    """A call as the template writes it."""
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def call(name="add", arguments='{"a": 1, "b": [2]}'):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


async def test_an_answer_of_the_sdk_comes_back_as_it_is(api, prompt_of):
    answer = ChatCompletion.model_validate((await api.chat()).json())
    assert await prompt_of(**answer.choices[0].message.model_dump()) == "one two"
    assert await prompt_of(**answer.choices[0].message.model_dump(exclude_none=True)) == "one two"


async def test_an_answer_of_another_server_with_everything_in_it(prompt_of):
    message = ChatCompletionMessage(
        role="assistant",
        content="a",
        annotations=[],
        tool_calls=[
            ChatCompletionMessageFunctionToolCall(
                id="1", type="function", function=Function(name="add", arguments='{"a": 1}')
            )
        ],
    )
    assert await prompt_of(**message.model_dump()) == "a" + written('{"a": 1}')


async def test_a_refusal(prompt_of):
    parts = [{"type": "text", "text": "Well,"}, {"type": "refusal", "refusal": "no."}]
    assert await prompt_of(content=parts) == "Well,\nno."
    assert await prompt_of(content=None, refusal="No.") == "No."
    assert await prompt_of(content="Yes.", refusal=None) == "Yes."


async def test_calls_reach_the_template(prompt_of):
    two = written("{}") + written("{}", "b")
    assert await prompt_of(content=None, tool_calls=[call(arguments="{}"), call("b", "{}")]) == two
    assert await prompt_of(content=[], tool_calls=[call()]) == written('{"a": 1, "b": [2]}')
    assert await prompt_of(function_call={"name": "add", "arguments": "{}"}) == written("{}")
    assert await prompt_of(tool_calls=[call(arguments="")]) == written("{}"), "some clients leave it so"
    assert await prompt_of(tool_calls=[{"function": {"name": "add", "arguments": None}}]) == written("{}")


BAD = ["{a: 1}", "[1]", '{"a": NaN}', '{"a": "\\ud800"}', '{"a":' * 100 + "1" + "}" * 100, "[" * 1500, '{"a": 1']


@pytest.mark.parametrize("arguments", BAD)
async def test_arguments_that_are_no_object_are_refused(api, engine, arguments):
    calls = [call(), call(arguments=arguments)]
    error = api.error_of(await api.chat(messages=[USER, {"role": "assistant", "tool_calls": calls}]), 400)
    assert error["param"] == "messages.1.tool_calls.1.function.arguments"
    assert "JSON text of an object" in error["message"]
    message = {"role": "assistant", "function_call": {"name": "add", "arguments": arguments}}
    assert api.error_of(await api.chat(messages=[message]), 400)["param"] == "messages.0.function_call.arguments"
    assert not engine.streams


async def test_arguments_are_not_parsed_on_the_event_loop(api, engine, monkeypatch):
    """They may be as long as a body, and are read with the template, where the sum of all texts is known to fit."""

    def never(_):
        raise AssertionError

    monkeypatch.setattr("server.text.turns.parsed", never)
    body = {"messages": [USER, {"role": "assistant", "tool_calls": [call()]}]}
    assert (await api.chat(**body)).status_code == 200


async def test_reasoning_reaches_the_template_under_both_its_names(prompt_of):
    assert await prompt_of(content="a", reasoning_content="b") == "a(b)"
    assert await prompt_of(content="a", reasoning="b") == "a(b)"


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [call(arguments='{"a": "<|endoftext|>"}')]},
        {"tool_calls": [call(arguments='{"a": "\\u003c|endoftext|>"}')]},
        {"tool_calls": [call(arguments='{"<|endoftext|>": 1}')]},
        {"tool_calls": [call(arguments='{"a": [["<|endoftext|>"]]}')]},
        {"tool_calls": [call(name="<|endoftext|>")]},
        {"content": "", "reasoning": "<|endoftext|>"},
        {"content": [{"type": "refusal", "refusal": "<|endoftext|>"}]},
    ],
)
async def test_a_control_token_within_any_of_it_is_text(prompt_of, engine, message):
    assert "<|endoftext|>" in await prompt_of(**message)
    assert 256 not in engine.submissions[-1].prompt_ids


async def test_a_long_call_is_refused_before_it_is_tokenised(api, engine):
    body = {"messages": [{"role": "assistant", "tool_calls": [call(arguments=json.dumps({"a": "x" * 3000}))]}]}
    error = api.error_of(await api.chat(**body), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


async def test_what_comes_back_with_the_answer(api):
    answer = (await api.chat(service_tier="auto", metadata={"user": "me"})).json()
    assert (answer["service_tier"], answer["metadata"]) == ("auto", {"user": "me"})
    assert not {"service_tier", "metadata"} & set((await api.chat()).json())
    for event in api.events_of((await api.chat(stream=True, service_tier="flex", metadata={"a": "b"})).text):
        assert event["service_tier"] == "flex"
        assert "metadata" not in event


async def test_answers_are_what_the_sdk_declares(api):
    """Field by field: its models are lax when they are built by the client itself."""
    chat = (await api.chat(service_tier="default", logprobs=True, top_logprobs=2)).json()
    ChatCompletion.model_validate(chat, strict=True)
    Completion.model_validate((await api.complete(logprobs=2)).json(), strict=True)
    options = {"include_usage": True}
    for event in api.events_of((await api.chat(stream=True, logprobs=True, stream_options=options)).text):
        ChatCompletionChunk.model_validate(event, strict=True)


async def test_the_fingerprint_follows_from_what_runs(engine, tokenizer):
    from server.protocols.service import _fingerprint
    from server.settings.tree import build

    settings = build({})
    first = _fingerprint(engine.info, settings)
    assert first == _fingerprint(engine.info, build({"port": 1, "max_queued_requests": 3}))
    assert first != _fingerprint(engine.info, build({"diffusion.threshold": 0.5}))
    assert first != _fingerprint(engine.info, build({"temperature": 0.5}))
