"""Tool calls over a real socket, from the bundled model, with the loops that people write."""

import json
import re
from pathlib import Path

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

PAGE = (Path(__file__).parent.parent / "docs" / "structured.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
QUESTION = [{"role": "user", "content": "Tom has 3 apples and finds 4 more. How many?"}]
ADD = {
    "type": "object",
    "properties": {
        "numbers": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "unit": {"enum": ["apples", None]},
    },
    "required": ["numbers"],
    "additionalProperties": False,
}
SCHEMAS = {"add": ADD, "now": {"type": "object", "maxProperties": 0}}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": ADD}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "add"}}


class Basket(BaseModel):
    """Puts apples into a basket."""

    who: str = Field(max_length=6)
    count: int = Field(ge=0, le=99)


def called(message):
    """The calls of a message, each of which is valid."""
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]
    for name, arguments in calls:
        jsonschema.validate(arguments, SCHEMAS[name])
    return calls


def said(choice):
    """All of a choice but the ids of its calls, which are another answer's."""
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    return choice.finish_reason, choice.message.content, calls


@pytest.mark.parametrize(("temperature", "length"), [(0, 32), (1.5, 8)])
@pytest.mark.parametrize("choice", ["none", "auto", "required", NAMED])
def test_streams_hold_valid_calls_and_add_up_to_the_answer(client, choice, temperature, length):
    body = {
        "model": "demo",
        "messages": QUESTION,
        "tools": TOOLS,
        "tool_choice": choice,
        "max_tokens": 110,
        "temperature": temperature,
        "seed": 5,
        "extra_body": {"diffusion": {"block_length": length}},
    }
    with client.chat.completions.stream(**body) as events:
        [streamed] = events.get_final_completion().choices
    [whole] = client.chat.completions.create(**body).choices
    assert said(streamed) == said(whole)
    names = [name for name, _ in called(streamed.message)]
    match choice:
        case "none":
            assert not names
        case "required":
            assert names
        case {}:
            assert names == ["add"]
    is_free_call = bool(names) and choice != NAMED
    assert streamed.finish_reason == ("tool_calls" if is_free_call else "stop")
    assert all(call.id.startswith("call_") for call in streamed.message.tool_calls or ())


def test_many_answers_at_high_temperature(client):
    """Whatever the model says."""
    answer = client.chat.completions.create(
        model="demo",
        messages=QUESTION,
        tools=TOOLS,
        tool_choice="required",
        n=3,
        temperature=2,
        seed=1,
        max_tokens=150,
    )
    assert len(answer.choices) == 3
    found = [called(choice.message) for choice in answer.choices]
    assert all(found)
    assert {choice.finish_reason for choice in answer.choices} == {"tool_calls"}
    one = client.chat.completions.create(
        model="demo",
        messages=QUESTION,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        n=3,
        temperature=2,
        max_tokens=150,
    )
    assert {len(called(choice.message)) for choice in one.choices} == {1}


def test_a_loop_of_two_tools(client):
    """As it stands in OpenAI's guide: calls are run, results sent back, until an answer comes."""
    functions = {"add": lambda numbers, **_: sum(numbers), "now": lambda: "12:00"}
    messages = list(QUESTION)
    for choice in (NAMED, {"type": "function", "function": {"name": "now"}}, "none"):
        answer = client.chat.completions.create(
            model="demo", messages=messages, tools=TOOLS, tool_choice=choice, max_tokens=100
        )
        message = answer.choices[0].message
        messages.append(message)
        for call in message.tool_calls or ():
            outcome = functions[call.function.name](**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(outcome)})
    assert [message["role"] if isinstance(message, dict) else message.role for message in messages] == (
        ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    )
    assert isinstance(messages[-1].content, str)
    assert not messages[-1].tool_calls


def test_the_helper_for_pydantic_classes(client):
    answer = client.chat.completions.parse(
        model="demo",
        messages=QUESTION,
        tools=[openai.pydantic_function_tool(Basket)],
        tool_choice="required",
        max_tokens=150,
    )
    for call in answer.choices[0].message.tool_calls:
        assert isinstance(call.function.parsed_arguments, Basket)


def test_events_of_the_helper_for_streams(client):
    tools = [openai.pydantic_function_tool(Basket)]
    with client.chat.completions.stream(
        model="demo", messages=QUESTION, tools=tools, tool_choice="required", max_tokens=150
    ) as events:
        found = list(events)
    deltas = [event for event in found if event.type == "tool_calls.function.arguments.delta" and event.index == 0]
    [done, *_] = [event for event in found if event.type == "tool_calls.function.arguments.done"]
    assert "".join(delta.arguments_delta for delta in deltas) == done.arguments
    assert isinstance(done.parsed_arguments, Basket)


def test_content_of_a_schema_beside_tools(client):
    answer = client.chat.completions.create(
        model="demo",
        messages=QUESTION,
        tools=TOOLS,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": ADD}},
        n=4,
        temperature=1.5,
        max_tokens=150,
    )
    for choice in answer.choices:
        if not called(choice.message):
            jsonschema.validate(json.loads(choice.message.content), ADD)


def test_no_room_is_a_400_that_says_how_much_a_call_takes(client):
    with pytest.raises(openai.BadRequestError, match=r"takes \d+ tokens") as told:
        client.chat.completions.create(
            model="demo", messages=QUESTION, tools=TOOLS, tool_choice="required", max_tokens=5
        )
    assert told.value.param == "max_tokens"
    answer = client.chat.completions.create(model="demo", messages=QUESTION, tools=TOOLS, max_tokens=5)
    assert answer.choices[0].finish_reason == "stop"


def test_a_stop_string_may_cut_a_call(client):
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, tools=TOOLS, tool_choice=NAMED, max_tokens=150, stop=["numbers"]
    )
    [choice] = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.message.tool_calls[0].function.arguments == '{"'


@pytest.mark.parametrize("source", [source for source in EXAMPLES if "langchain" not in source])
def test_the_examples_of_the_page(demo_server, capsys, source):
    """docs/structured.md. LangChain's is in tests/server/test_other_clients.py, in other words."""
    exec(compile(source.replace("http://127.0.0.1:8000", demo_server), "structured.md", "exec"), {})
    assert capsys.readouterr().out
