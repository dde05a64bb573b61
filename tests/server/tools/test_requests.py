"""What a request may say of tools: the constraint that it becomes, or a 400 that names the field."""

import json

import pytest
from httpx import ASGITransport, AsyncClient
from pydantic import ValidationError

from server.http.app import create_app
from server.schemas import ChatRequest
from server.settings.tree import build

from .asking import LOOK, NAMED, NOW, TOOLS, USER, allowed, ask, function


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
async def test_the_choice_becomes_a_constraint(api, engine, body, accepted, accepts):
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


@pytest.mark.parametrize(
    ("choice", "shown", "accepted"),
    [
        (allowed("auto", "now"), "now ", ["Hello", "NOW"]),
        (allowed("required", "now"), "now ", ["NOW"]),
        (allowed("required", "now", "look"), "look now ", ["NOW", "LOOK", "NOW LOOK"]),
        (allowed("required", "look", "look"), "look ", ["LOOK"]),
    ],
)
async def test_some_of_the_tools_are_allowed(api, engine, choice, shown, accepted, accepts):
    await ask(api, tool_choice=choice)
    [submission] = engine.submissions
    assert bytes(submission.prompt_ids).decode() == f"{shown}<u>hi"
    texts = {"Hello": "Hello", "NOW": NOW, "LOOK": LOOK, "NOW LOOK": f"{NOW}\n{LOOK}"}
    assert [name for name, text in texts.items() if accepts(submission.sampling.constraint, text)] == accepted


def test_as_many_are_allowed_as_there_may_be():
    body = {"messages": [USER], "tools": TOOLS}
    ChatRequest.model_validate({**body, "tool_choice": allowed("auto", *["now"] * 128)})
    with pytest.raises(ValidationError, match="at most 128"):
        ChatRequest.model_validate({**body, "tool_choice": allowed("auto", *["now"] * 129)})


async def test_no_tool_is_allowed(api, engine):
    await ask(api, tool_choice=allowed("auto"))
    [submission] = engine.submissions
    assert bytes(submission.prompt_ids) == b"<u>hi"
    assert submission.sampling.constraint is None


async def test_what_is_refused_of_an_allowed_tool_names_its_place(api, engine):
    """Among all tools; nothing is compiled of the others."""
    told = [*TOOLS, function(name="a", parameters={"if": {}})]
    response = await api.chat(tools=told, tool_choice=allowed("auto", "a"))
    assert api.error_of(response, 400)["param"] == "tools.2.function.parameters"
    await ask(api, tools=told, tool_choice=allowed("auto", "now"))


async def test_arguments_are_an_object(api, engine, accepts):
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


async def test_references_within_parameters(api, engine, accepts):
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
        ({"tools": [function(name="x" * 129)]}, "tools.0.function.name", "pattern"),
        ({"tools": [function(name="a\n")]}, "tools.0.function.name", "pattern"),
        ({"tools": [function(name="a"), function(name="a")]}, "tools", "two functions of the name `a`"),
        ({"tools": [function(name="a", parameters=[])]}, "tools.0.function.parameters", "dictionary"),
        ({"tools": [function(name="a", parameters={"type": "string"})]}, "tools.0.function.parameters", "of an object"),
        (
            {"tools": [function(name="a", parameters={"type": ["object", "null"]})]},
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
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", "provide"),
        ({"tool_choice": allowed("none", "now")}, "tool_choice.allowed_tools.mode", "'auto' or 'required'"),
        ({"tool_choice": allowed("auto", 5)}, "tool_choice.allowed_tools.tools.0.function.name", "string"),
        ({"tool_choice": allowed("auto", "now", "f")}, "tool_choice", "none of `tools`"),
        ({"tool_choice": allowed("required")}, "tool_choice", "allows no function"),
        ({"tool_choice": allowed("auto", "now"), "tools": []}, "tool_choice", "none of `tools`"),
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
