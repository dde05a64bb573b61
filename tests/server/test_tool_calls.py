"""Tools of a chat: what a request may say of them, the constraint that they become, calls in answers and streams."""

import json
import re
from contextlib import closing

import numpy as np
import pytest
from httpx import ASGITransport, AsyncClient
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter, ValidationError

from engine import FinishReason
from server.http.app import create_app
from server.schemas import ChatRequest
from server.schemas.tools import Tools
from server.settings.tree import build
from server.text.tokenizer import Tokenizer

from .fake_engine import FakeEngine

TEMPLATE = """\
{% for tool in tools or () %}{{ tool.function.name }} {% endfor %}\
{% for message in messages %}<{{ message.role[0] }}>{{ message.content }}\
{% for call in message.tool_calls %}\
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>\
{% endfor %}{% endfor %}"""
"""It knows tools, and takes few tokens: the engine has 128."""
PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
TOOLS = [
    {"type": "function", "function": {"name": "look", "description": "Look there.", "parameters": PLACE}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "look"}}
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
LOOK = '<tool_call>\n{"name": "look", "arguments": {"place": "Rome"}}\n</tool_call>'
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    with closing(Tokenizer.load(tokenizer_folder)) as tokenizer:
        tokenizer._tokenizer.chat_template = TEMPLATE
        yield tokenizer


@pytest.fixture(scope="module")
def constraints(tokenizer):
    """One worker process for all tests."""
    with closing(create_app(FakeEngine(), tokenizer, build({})).state.service.constraints) as constraints:
        yield constraints


@pytest.fixture
def app(app, constraints):
    object.__setattr__(app.state.service, "constraints", constraints)
    return app


def blocks(text, size):
    return [text[start : start + size] for start in range(0, len(text), size)] or [""]


@pytest.fixture
def says(engine):
    """`says(text)`: what the model answers, in blocks."""

    def script(text, size=16, end=FinishReason.STOP):
        engine.script = lambda _: [*blocks(text, size), end]

    return script


async def ask(api, **body):
    response = await api.chat(**{"tools": TOOLS, **body})
    assert response.status_code == 200, response.text
    return response.json()


async def stream(api, **body):
    response = await api.chat(**{"tools": TOOLS, "stream": True, **body})
    assert response.status_code == 200, response.text
    return api.events_of(response.text)


def accepts(constraint, text):
    state = constraint.advanced(0, np.frombuffer(text.encode(), np.uint8).astype(np.int64))
    return state < constraint.num_states and bool(constraint.accepts[state])


async def test_calls_come_apart_from_the_text(api, says):
    says(f"Well:\n{LOOK}\n{NOW}")
    answer = await ask(api)
    [choice] = answer["choices"]
    calls = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": "Well:", "refusal": None}
    assert choice["finish_reason"] == "tool_calls"
    assert [(call["type"], call["function"]) for call in calls] == [
        ("function", {"name": "look", "arguments": '{"place": "Rome"}'}),
        ("function", {"name": "now", "arguments": "{}"}),
    ]
    assert all(re.fullmatch("call_[0-9a-f]{24}", call["id"]) for call in calls)
    assert calls[0]["id"] != calls[1]["id"]
    assert answer["usage"]["completion_tokens"] == len(f"Well:\n{LOOK}\n{NOW}")
    ChatCompletion.model_validate(answer, strict=True)


async def test_content_is_null_beside_calls_alone(api, says):
    says(NOW)
    assert (await ask(api))["choices"][0]["message"]["content"] is None
    says("")
    assert (await ask(api))["choices"][0]["message"]["content"] == ""
    says("Hello.\n")
    [choice] = (await ask(api))["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello.\n", "refusal": None}
    assert choice["finish_reason"] == "stop"


async def test_a_stream_has_openais_form(api, says):
    says("Well:\n" + LOOK + "\n" + NOW, size=55)
    events = await stream(api)
    for event in events:
        ChatCompletionChunk.model_validate(event, strict=True)
    deltas = [event["choices"][0]["delta"] for event in events]
    ids = [call["id"] for delta in deltas for call in delta.get("tool_calls", ()) if "id" in call]
    assert deltas == [
        {"role": "assistant"},
        {"content": "Well:"},
        {"tool_calls": [{"index": 0, "id": ids[0], "type": "function", "function": {"name": "look", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"place'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '": "Rome"}'}}]},
        {"tool_calls": [{"index": 1, "id": ids[1], "type": "function", "function": {"name": "now", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
    ]
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * 6 + ["tool_calls"]


def folded(events):
    """What OpenAI's client makes of a stream, without what differs between two answers."""
    state = ChatCompletionStreamState()
    for event in events:
        state.handle_chunk(ChatCompletionChunk.model_validate(event))
    return stripped(state.get_final_completion().model_dump())


def stripped(answer):
    answer = ChatCompletion.model_validate(answer).model_dump()
    for choice in answer["choices"]:
        choice.pop("stop_reason", None)
        for number, call in enumerate(choice["message"]["tool_calls"] or ()):
            call["id"] = call["id"].startswith("call_") and number
            call["function"].pop("parsed_arguments", None)
            call.pop("index", None)
        choice["message"]["tool_calls"] = choice["message"]["tool_calls"] or None
        choice["message"].pop("parsed", None)
    return answer["choices"], answer["usage"] and answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("size", [1, 2, 7, 31, 1000])
@pytest.mark.parametrize("text", [NOW, f"Well: <{LOOK}\n{NOW}\n", "a < b", "", f"{LOOK}{LOOK[:50]}", LOOK[:30]])
async def test_the_stream_adds_up_to_the_answer(api, says, text, size):
    says(text, size=1000)
    whole = await ask(api)
    says(text, size)
    events = await stream(api, stream_options={"include_usage": True})
    assert folded(events) == stripped(whole)


async def test_ids_follow_from_the_answer_and_the_place(api, says):
    says(f"{NOW}\n{NOW}")
    answers = [await ask(api, n=2) for _ in range(2)]
    ids = [call["id"] for answer in answers for choice in answer["choices"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 8


async def test_each_choice_has_its_own_calls(api, engine):
    engine.script = lambda submission: [[NOW, "Hello.", LOOK][int(submission.request_id[-1])], FinishReason.STOP]
    choices = (await ask(api, n=3))["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls", "stop", "tool_calls"]
    assert [len(choice["message"].get("tool_calls", ())) for choice in choices] == [1, 0, 1]
    events = await stream(api, n=3)
    found = folded(events)[0]
    assert [choice["message"]["content"] for choice in found] == [None, "Hello.", None]
    names = [[call["function"]["name"] for call in choice["message"]["tool_calls"] or ()] for choice in found]
    assert names == [["now"], [], ["look"]]


async def test_log_probabilities_are_of_all_tokens(api, says):
    says(f"a\n{NOW}")
    [choice] = (await ask(api, logprobs=True, return_token_ids=True))["choices"]
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == f"a\n{NOW}"
    assert bytes(choice["token_ids"]).decode() == f"a\n{NOW}"
    events = await stream(api, logprobs=True, return_token_ids=True)
    entries = [entry for event in events for entry in (event["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert "".join(entry["token"] for entry in entries) == f"a\n{NOW}"


@pytest.mark.parametrize(
    ("text", "end", "body", "reason"),
    [
        (NOW, FinishReason.STOP, {}, "tool_calls"),
        (NOW, FinishReason.STOP, {"tool_choice": "required"}, "tool_calls"),
        (LOOK, FinishReason.STOP, {"tool_choice": NAMED}, "stop"),
        ("Hello", FinishReason.STOP, {}, "stop"),
        ("Hello", FinishReason.LENGTH, {}, "length"),
        (NOW, FinishReason.LENGTH, {}, "length"),
        (LOOK[:-30], FinishReason.LENGTH, {}, "length"),
        (LOOK, FinishReason.STOP, {"stop": "Rom"}, "stop"),
        (f"{NOW}\n{LOOK}", FinishReason.STOP, {"stop": "look"}, "stop"),
        (NOW, FinishReason.STOP, {"stop": "</tool_call>"}, "tool_calls"),
    ],
)
async def test_how_an_answer_ends(api, says, text, end, body, reason):
    """Clients run calls where they are told `tool_calls`: never of an answer that was cut amid one."""
    says(text, end=end)
    [choice] = (await ask(api, **body))["choices"]
    assert choice["finish_reason"] == reason
    assert choice["stop_reason"] == body.get("stop")
    assert (await stream(api, **body))[-1]["choices"][0]["finish_reason"] == reason


async def test_a_call_that_is_cut_off_has_the_arguments_so_far(api, says):
    says(LOOK[: LOOK.index('me"}')], end=FinishReason.LENGTH)
    [choice] = (await ask(api))["choices"]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"place": "Ro'}


@pytest.mark.parametrize(
    "body", [{"tool_choice": "none"}, {"tools": []}, {"tools": None}, {"tools": None, "tool_choice": "auto"}]
)
async def test_without_tools_nothing_is_shown_or_read(api, engine, says, body):
    says(NOW)
    [choice] = (await ask(api, **body))["choices"]
    assert choice["message"] == {"role": "assistant", "content": NOW, "refusal": None}
    assert choice["finish_reason"] == "stop"
    [submission] = engine.submissions
    assert bytes(submission.prompt_ids) == b"<u>hi"
    assert submission.sampling.constraint is None


@pytest.mark.parametrize(
    ("body", "accepted"),
    [
        ({}, "Hello|NOW|LOOK|NOW LOOK"),
        ({"tool_choice": "auto"}, "Hello|NOW|LOOK|NOW LOOK"),
        ({"parallel_tool_calls": False}, "Hello|NOW|LOOK"),
        ({"tool_choice": "required"}, "NOW|LOOK|NOW LOOK"),
        ({"tool_choice": "required", "parallel_tool_calls": False}, "NOW|LOOK"),
        ({"tool_choice": NAMED}, "LOOK"),
        ({"response_format": {"type": "json_object"}}, "NOW|LOOK|NOW LOOK|{}"),
        ({"response_format": {"type": "json_object"}, "tool_choice": "required"}, "NOW|LOOK|NOW LOOK"),
        ({"structured_outputs": {"json": {"const": {}}}, "tool_choice": NAMED}, "LOOK"),
        ({"guided_json": {"if": {}}, "tool_choice": "required"}, "NOW|LOOK|NOW LOOK"),
        ({"guided_regex": "(?<=a)b", "tool_choice": "required"}, "NOW|LOOK|NOW LOOK"),
        ({"guided_choice": ["a"], "tool_choice": NAMED}, "LOOK"),
        ({"structured_outputs": {"grammar": "root ::="}, "tool_choice": NAMED}, "LOOK"),
    ],
)
async def test_the_choice_becomes_a_constraint(api, engine, body, accepted):
    await ask(api, **body)
    [submission] = engine.submissions
    assert bytes(submission.prompt_ids) == b"look now <u>hi"
    texts = {
        "Hello": "Hello",
        "NOW": NOW,
        "LOOK": LOOK,
        "NOW LOOK": f"{NOW}\n{LOOK}",
        "{}": "{}",
        "BAD": LOOK.replace("pl", "p"),
    }
    found = [name for name, text in texts.items() if accepts(submission.sampling.constraint, text)]
    if "response_format" not in body and "Hello" in accepted:
        accepted += "|{}"  # it is a text as any other
    assert found == accepted.split("|")


async def test_arguments_are_an_object(api, engine):
    """Whether `parameters` says so or not, and whatever the functions are called."""
    functions = {
        "auto": {"properties": {"a": {"const": 1}}, "required": ["a"]},
        "required": {"anyOf": [{"properties": {"b": {"const": 2}}, "required": ["b"]}, {"type": "null"}]},
        "empty": {},
        "none": {"type": "object", "properties": {}},
    }
    told = [{"type": "function", "function": {"name": name, "parameters": given}} for name, given in functions.items()]
    called = {
        "auto": ['{"a": 1}', "1", "{}"],
        "required": ['{"b": 2}', "null", "1"],
        "empty": ["{}", '{"a": 1}', "null"],
        "none": ["{}", '{"a": 1}', "null"],
    }
    for name, (good, *bad) in called.items():
        for choice in ("required", {"type": "function", "function": {"name": name}}):
            await ask(api, tools=told, tool_choice=choice)
            constraint = engine.submissions[-1].sampling.constraint
            texts = [f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>' for text in (good, *bad)]
            assert [accepts(constraint, text) for text in texts] == [True, False, False]


async def test_references_within_parameters(api, engine):
    """As pydantic writes a class that holds itself."""
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}, "additionalProperties": False}
    told = [function(name="f", parameters={"$defs": {"Node": node}, "$ref": "#/$defs/Node"})]
    await ask(api, tools=told, tool_choice="required")
    text = '<tool_call>\n{"name": "f", "arguments": {"next": {"next": {}}}}\n</tool_call>'
    constraint = engine.submissions[-1].sampling.constraint
    assert accepts(constraint, text)
    assert not accepts(constraint, text.replace("{}", "1"))


async def test_a_server_that_constrains_nothing_calls_nothing(engine, tokenizer):
    app = create_app(engine, tokenizer, build({"structured": False}))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        body = {"messages": [USER], "tools": TOOLS}
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.json()["error"]["param"] == "tools"
        assert "`structured` is false" in answer.json()["error"]["message"]
        assert (await client.post("/v1/chat/completions", json={**body, "tool_choice": "none"})).status_code == 200


def function(**fields):
    return {"type": "function", "function": fields}


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [{**function(name="f", strict=None, description=None, parameters=None), "cache_control": None}]},
        {
            "tools": [
                function(name="f", strict=True, parameters={"$schema": "https://json-schema.org/draft-07/schema#"})
            ]
        },
        {"tools": [function(name="f", description="", parameters={"type": "object", "properties": {}})]},
        {"tools": [function(name=f"tool-{number}_X") for number in range(5)], "parallel_tool_calls": None},
        {"tool_choice": None},
        {"tool_choice": {**NAMED, "function": {"name": "look", "description": "a"}}},
        {"messages": [USER, {"role": "assistant", "tool_calls": None, "function_call": None, "content": "a"}]},
        {"messages": [{"role": "tool", "tool_call_id": "1", "name": "f", "content": [{"type": "text", "text": "4"}]}]},
        {"messages": [{"role": "tool", "tool_call_id": "1", "content": ""}]},
    ],
)
async def test_what_clients_send_is_taken(api, engine, body):
    """As the SDKs of OpenAI and Vercel, LangChain and LiteLLM write it."""
    await ask(api, **body)
    assert engine.submissions[-1].sampling.constraint


async def test_an_answer_goes_back_with_the_results(api, engine, says):
    says(f"Well:\n{LOOK}")
    message = (await ask(api))["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "Sun"}
    await ask(api, messages=[USER, message, result], tool_choice="none")
    written = '<tool_call>{"name": "look", "arguments": {"place": "Rome"}}</tool_call>'
    assert bytes(engine.submissions[-1].prompt_ids).decode() == f"<u>hi<a>Well:{written}<t>Sun"


def test_there_may_be_128_tools():
    told = [function(name=f"f{number}") for number in range(129)]
    assert len(TypeAdapter(Tools).validate_python(told[:128])) == 128
    with pytest.raises(ValidationError, match="at most 128"):
        TypeAdapter(Tools).validate_python(told)


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        ({"tools": {}}, "tools", "list"),
        ({"tools": [5]}, "tools.0", "dictionary"),
        ({"tools": [{}]}, "tools.0.type", "provide"),
        ({"tools": [{"type": "custom"}]}, "tools.0.type", "'function'"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "provide"),
        ({"tools": [function()]}, "tools.0.function.name", "provide"),
        ({"tools": [function(name="a b")]}, "tools.0.function.name", "pattern"),
        ({"tools": [function(name="x" * 65)]}, "tools.0.function.name", "pattern"),
        ({"tools": [function(name="a\n")]}, "tools.0.function.name", "pattern"),
        ({"tools": [function(name="a"), function(name="a")]}, "tools", "two functions of the name `a`"),
        ({"tools": [function(name="a", parameters=[])]}, "tools.0.function.parameters", "dictionary"),
        ({"tools": [function(name="a", parameters={"type": "string"})]}, "tools.0.function.parameters", "of an object"),
        (
            {"tools": [function(name="a", parameters={"type": ["object"]})]},
            "tools.0.function.parameters",
            "of an object",
        ),
        ({"tools": [function(name="a", strict="yes")]}, "tools.0.function.strict", "boolean"),
        (
            {"tools": [TOOLS[0], function(name="a", parameters={"properties": {"x": {"if": {}}}})]},
            "tools.1.function.parameters",
            "#/properties/x/if: the keyword `if` is not supported",
        ),
        (
            {"tools": [function(name="a", parameters={"properties": {"x": {"enum": []}}, "required": ["x"]})]},
            "tools.0.function.parameters",
            "no value fits: #/properties/x",
        ),
        ({"tool_choice": "any"}, "tool_choice", "`none`, `auto`, `required`"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "`required`"),
        ({"tool_choice": {"type": "function", "function": {"name": 5}}}, "tool_choice", "`required`"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "none of `tools`"),
        ({"tool_choice": {"type": "function", "function": {"name": "a b"}}}, "tool_choice", "none of `tools`"),
        ({"tool_choice": "required", "tools": None}, "tool_choice", "no `tools`"),
        ({"tool_choice": NAMED, "tools": []}, "tool_choice", "none of `tools`"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "boolean"),
        ({"tools": None, "functions": [{"name": "f"}]}, "functions", "`tools`"),
        ({"tools": None, "function_call": {"name": "f"}}, "function_call", "`tool_choice`"),
        ({"guided_regex": "a"}, "guided_regex", "beside `tools`"),
        ({"guided_json": "{", "tool_choice": "required"}, "guided_json", "no JSON"),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a", "tool_choice": "required"},
            "guided_regex",
            "both say",
        ),
        ({"guided_json": {"type": "x"}}, "guided_json", "#/type"),
        ({"guided_json": "{"}, "guided_json", "no JSON"),
        (
            {"guided_json": {"type": "object"}, "tools": [function(name="a", parameters={"if": {}})]},
            "tools.0.function.parameters",
            "`tools.0.function.parameters`: #/if",
        ),
        ({"guided_json": True, "guided_regex": "a"}, "guided_regex", "both say"),
    ],
)
async def test_a_bad_value_names_its_field(api, engine, body, param, why):
    response = await api.chat(**{"tools": TOOLS, **body})
    error = api.error_of(response, 400)
    assert error["param"] == param
    assert why in error["message"]
    assert not engine.streams


@pytest.mark.parametrize(
    "last",
    [
        {
            "role": "assistant",
            "content": "a",
            "tool_calls": [NAMED | {"function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "assistant", "content": "a", "function_call": {"name": "look", "arguments": "{}"}},
        {"role": "tool", "content": "a"},
        {"role": "function", "content": "a"},
    ],
)
async def test_nothing_goes_on_behind_calls(api, engine, last):
    response = await api.chat(messages=[USER, last], continue_final_message=True)
    assert api.error_of(response, 400)["param"] == "continue_final_message"
    assert not engine.streams


async def test_a_message_goes_on_and_may_call(api, engine, says):
    says(f"ll.\n{NOW}")
    messages = [USER, {"role": "assistant", "content": "We"}]
    [choice] = (await ask(api, messages=messages, continue_final_message=True))["choices"]
    assert bytes(engine.submissions[-1].prompt_ids) == b"look now <u>hi<a>We"
    assert choice["message"]["content"] == "ll."
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "now"


def test_many_tools():
    many = [function(name=f"f{number}") for number in range(129)]
    ChatRequest.model_validate({"messages": [USER], "tools": many[1:]})
    with pytest.raises(ValidationError, match="at most 128 items"):
        ChatRequest.model_validate({"messages": [USER], "tools": many})


async def test_long_tools_are_refused_before_they_are_rendered(api):
    long = [function(name="f", description="x" * 2100)]
    error = api.error_of(await api.chat(tools=long), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "tools")
    both = [function(name="f", description="x" * 1500)]
    error = api.error_of(await api.chat(tools=both, messages=[{"role": "user", "content": "x" * 1500}]), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


async def test_tokens_with_tools_are_counted(api, engine):
    tokens = (await api.client.post("/tokenize", json={"messages": [USER], "tools": TOOLS})).json()["tokens"]
    await ask(api)
    assert tokens == list(engine.submissions[0].prompt_ids)
    response = await api.client.post("/tokenize", json={"prompt": "a", "tools": TOOLS})
    assert api.error_of(response, 400)["param"] == "prompt"


@pytest.mark.parametrize("parameters", ['{"a": NaN}', '{"a": "\\ud800"}', '{"\\ud800": 1}'])
async def test_what_no_template_should_see(api, engine, parameters):
    tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {parameters}}}}}'
    body = f'{{"messages": [{json.dumps(USER)}], "tools": [{tool}]}}'
    response = await api.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    api.error_of(response, 400)
    assert not engine.streams
