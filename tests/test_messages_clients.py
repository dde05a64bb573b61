"""What agents are written with, over a real socket, with the bundled model: /v1/messages by Anthropic's SDK."""

from importlib import import_module
from typing import Literal

import httpx
import jsonschema
import pytest
from pydantic import BaseModel

from tests.replays import claude_code
from tests.test_responses_clients import FUNCTIONS
from tests.test_tool_clients import ADD, QUESTION, SCHEMAS

TOOLS = [
    {"name": "add", "description": "Adds.", "input_schema": ADD},
    {"name": "now", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}},
]


class Verdict(BaseModel):
    """Without bounds: the client keeps those of a number to itself, and then refuses what the model says."""

    verdict: Literal["right", "wrong"]


@pytest.fixture(scope="module")
def anthropic():
    """The package, which takes seconds to import: not where tests are collected."""
    return import_module("anthropic")


@pytest.fixture(scope="module")
def claude(anthropic, demo_server):
    with anthropic.Anthropic(base_url=demo_server, api_key="none", max_retries=0) as client:
        yield client


def contents(message):
    """The same of a message's blocks."""
    return message.stop_reason, [block.model_dump(exclude={"id"}) for block in message.content]


@pytest.mark.parametrize("choice", ["none", "auto", "any", "tool"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_streams_are_the_answer(claude, choice, temperature):
    body = {
        "model": "demo",
        "messages": QUESTION,
        "tools": TOOLS,
        "tool_choice": {"type": choice, **({"name": "add"} if choice == "tool" else {})},
        "max_tokens": 110,
        "extra_body": {"seed": 5, "temperature": temperature},
    }
    whole = claude.messages.create(**body)
    with claude.messages.stream(**body) as events:
        kinds = [event.type for event in events]
        streamed = events.get_final_message()
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert contents(streamed) == contents(whole)
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    calls = [block for block in whole.content if block.type == "tool_use"]
    for call in calls:
        jsonschema.validate(call.input, SCHEMAS[call.name])
    assert bool(calls) == (choice in ("any", "tool")) or choice == "auto"
    assert (whole.stop_reason == "tool_use") == bool(calls)


async def test_async(anthropic, demo_server, claude):
    body = {"model": "demo", "messages": QUESTION, "max_tokens": 40, "system": "Be brief."}
    expected = contents(claude.messages.create(**body))
    async with anthropic.AsyncAnthropic(base_url=demo_server, auth_token="none", max_retries=0) as other:
        async with other.messages.stream(**body) as events:
            text = "".join([piece async for piece in events.text_stream])
            streamed = await events.get_final_message()
        assert contents(streamed) == expected
        assert text == streamed.content[0].text
        raw = await other.messages.create(**body, stream=True)
        assert [event.type async for event in raw][-1] == "message_stop"
        counted = await other.messages.count_tokens(model="demo", messages=QUESTION, system="Be brief.")
        assert counted.input_tokens == streamed.usage.input_tokens
        parsed = await other.messages.parse(model="demo", messages=QUESTION, max_tokens=60, output_format=Verdict)
        assert isinstance(parsed.parsed_output, Verdict)


def test_the_helpers_for_pydantic_classes(claude):
    parsed = claude.messages.parse(model="demo", messages=QUESTION, max_tokens=60, output_format=Verdict)
    assert isinstance(parsed.parsed_output, Verdict)
    with claude.messages.stream(model="demo", messages=QUESTION, max_tokens=60, output_format=Verdict) as events:
        assert events.get_final_message().parsed_output == parsed.parsed_output


def test_a_loop_of_two_tools(claude):
    """As it stands in Anthropic's guide: calls are run, results sent back, until the answer calls nothing."""
    messages = list(QUESTION)
    for name in ("add", "now", None):
        choice = {"type": "tool", "name": name} if name else {"type": "none"}
        answer = claude.messages.create(
            model="demo", messages=messages, tools=TOOLS, tool_choice=choice, max_tokens=100
        )
        messages.append({"role": "assistant", "content": answer.content})
        if answer.stop_reason == "tool_use":
            results = [
                {"type": "tool_result", "tool_use_id": call.id, "content": str(FUNCTIONS[call.name](**call.input))}
                for call in answer.content
                if call.type == "tool_use"
            ]
            messages.append({"role": "user", "content": results})
    assert [message["role"] for message in messages] == ["user", "assistant"] * 3
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert [block.type for block in answer.content] == ["text"]


def test_the_tool_runner(anthropic, claude):
    seen = []

    @anthropic.beta_tool
    def add(first: int, second: int) -> str:
        """Adds.

        Args:
            first: A number.
            second: A number.
        """
        seen.append((first, second))
        return str(first + second)

    runner = claude.beta.messages.tool_runner(
        model="demo",
        max_tokens=150,
        tools=[add],
        tool_choice={"type": "tool", "name": "add"},
        messages=QUESTION,
        max_iterations=2,
    )
    replies = list(runner)
    assert [reply.stop_reason for reply in replies] == ["tool_use"] * 2
    assert seen


def test_the_models(anthropic, claude):
    [listed] = claude.models.list(limit=1)
    assert claude.models.retrieve("demo") == listed
    assert listed.display_name == "demo"
    assert list(claude.models.list(after_id="demo", lifecycle=["active"])) == []
    assert [model.id for model in claude.beta.models.list()] == ["demo"]
    with pytest.raises(anthropic.NotFoundError) as told:
        claude.models.retrieve("claude")
    assert told.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="`limit`"):
        claude.models.list(limit=0)


def test_errors(anthropic, claude):
    with pytest.raises(anthropic.BadRequestError, match="`temperature`") as told:
        claude.messages.create(model="demo", messages=QUESTION, max_tokens=5, extra_body={"temperature": 5})
    assert told.value.type == "invalid_request_error"
    assert told.value.request_id
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claude", messages=QUESTION, max_tokens=5)


def test_steps_are_told(claude):
    body = {"model": "demo", "messages": QUESTION, "max_tokens": 20}
    extra = {"diffusion": {"trace": True}}
    whole = claude.messages.create(**body, extra_body=extra)
    with claude.messages.stream(**body, extra_body=extra) as events:
        steps = [event for event in events if event.type == "unmask.step"]
        assert contents(events.get_final_message()) == contents(whole)
    assert len(steps) == len(whole.trace) > 1


def test_what_claude_code_sends_is_too_long_for_this_model(demo_server):
    """A 400 that says so, in the words that it looks for."""
    headers = {"anthropic-beta": "claude-code-20250219"}
    answer = httpx.post(f"{demo_server}/v1/messages", json=claude_code(), headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "maximum context length" in error["message"]
    assert error["message"].startswith("prompt is too long")
