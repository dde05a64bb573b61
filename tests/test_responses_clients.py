"""What agents are written with, over a real socket, with the bundled model: /v1/responses by OpenAI's SDKs."""

import json
import warnings

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.replays import codex
from tests.test_tool_clients import ADD, QUESTION, SCHEMAS, Basket

TEXT = QUESTION[0]["content"]
TOOLS = [
    {"type": "function", "name": "add", "description": "Adds.", "parameters": ADD},
    {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}},
]
FUNCTIONS = {"add": lambda numbers, **_: sum(numbers), "now": lambda: "12:00"}


class Sum(BaseModel):
    """A sum."""

    total: int = Field(ge=0, le=99)


def outputs(response):
    """An answer's items, without what differs between two answers."""
    return [
        (item.type, item.status, getattr(item, "arguments", None) or item.content[0].text) for item in response.output
    ]


@pytest.mark.parametrize("choice", ["none", "auto", "required", {"type": "function", "name": "add"}])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_streams_are_the_answer(client, choice, temperature):
    body = {
        "model": "demo",
        "input": TEXT,
        "tools": TOOLS,
        "tool_choice": choice,
        "max_output_tokens": 110,
        "temperature": temperature,
        "extra_body": {"seed": 5},
    }
    whole = client.responses.create(**body)
    with client.responses.stream(**body) as events:
        kinds = [event.type for event in events]
        streamed = events.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert outputs(streamed) == outputs(whole)
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    calls = [item for item in whole.output if item.type == "function_call"]
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    assert bool(calls) == (choice not in ("none", "auto")) or choice == "auto"


async def test_async(demo_server, client):
    body = {"model": "demo", "input": TEXT, "max_output_tokens": 40}
    expected = outputs(client.responses.create(**body))
    async with openai.AsyncOpenAI(base_url=f"{demo_server}/v1", api_key="none", max_retries=0) as other:
        async with other.responses.stream(**body) as events:
            text = "".join([event.delta async for event in events if event.type == "response.output_text.delta"])
            streamed = await events.get_final_response()
        assert outputs(streamed) == expected
        assert text == streamed.output_text
        raw = await other.responses.create(**body, stream=True)
        *_, last = [event async for event in raw]
        assert outputs(last.response) == expected
        parsed = await other.responses.parse(model="demo", input=TEXT, text_format=Sum, max_output_tokens=60)
        assert isinstance(parsed.output_parsed, Sum)


def test_the_helpers_for_pydantic_classes(client):
    parsed = client.responses.parse(model="demo", input=TEXT, text_format=Sum, max_output_tokens=60)
    assert isinstance(parsed.output_parsed, Sum)
    with client.responses.stream(model="demo", input=TEXT, text_format=Sum, max_output_tokens=60) as events:
        assert events.get_final_response().output_parsed == parsed.output_parsed
    answer = client.responses.parse(
        model="demo",
        input=TEXT,
        tools=[openai.pydantic_function_tool(Basket)],
        tool_choice="required",
        max_output_tokens=150,
    )
    assert isinstance(answer.output[0].parsed_arguments, Basket)


def test_an_answer_that_is_cut(client):
    answer = client.responses.create(model="demo", input=TEXT, max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    events = list(client.responses.create(model="demo", input=TEXT, max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"
    assert outputs(events[-1].response) == outputs(answer)


def test_a_loop_of_two_tools(client):
    """As it stands in OpenAI's guide: calls are run, results sent back behind what came before."""
    items = [{"role": "user", "content": TEXT}]
    for name in ("add", "now", None):
        choice = {"type": "function", "name": name} if name else "none"
        answer = client.responses.create(
            model="demo",
            input=items,
            tools=TOOLS,
            tool_choice=choice,
            max_output_tokens=80,
        )
        items += answer.output
        for item in answer.output:
            if item.type == "function_call":
                outcome = FUNCTIONS[item.name](**json.loads(item.arguments))
                items.append({"type": "function_call_output", "call_id": item.call_id, "output": str(outcome)})
    assert [
        item["type"] if isinstance(item, dict) and "type" in item else getattr(item, "type", None) for item in items
    ] == [None, "function_call", "function_call_output", "function_call", "function_call_output", "message"]
    assert not [item for item in answer.output if item.type == "function_call"]


def test_errors(client):
    with pytest.raises(openai.BadRequestError, match="nothing is stored") as told:
        client.responses.create(model="demo", input=TEXT, previous_response_id="resp_1")
    assert told.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.create(model="demo", input=TEXT, store=True)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


def test_steps_are_told(client):
    body = {"model": "demo", "input": TEXT, "max_output_tokens": 20, "extra_body": {"diffusion": {"trace": True}}}
    whole = client.responses.create(**body)
    with client.responses.stream(**body) as events:
        steps = [event for event in events if event.type == "unmask.step"]
    assert len(steps) == len(whole.trace) > 1
    assert [step.trace["positions"] for step in steps] == [step["positions"] for step in whole.trace]


async def test_the_agents_sdk(demo_server):
    """An agent calls its tool and ends with what the tool says; one without tools answers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import agents
    agents.set_tracing_disabled(True)
    seen = []

    @agents.function_tool
    def add(first: int, second: int) -> str:
        """Adds."""
        seen.append((first, second))
        return str(first + second)

    async with openai.AsyncOpenAI(base_url=f"{demo_server}/v1", api_key="none", max_retries=0) as other:
        model = agents.OpenAIResponsesModel(model="demo", openai_client=other)
        settings = agents.ModelSettings(tool_choice="required", max_tokens=150, parallel_tool_calls=False)
        agent = agents.Agent(
            name="Adder",
            instructions="Use tools.",
            model=model,
            tools=[add],
            model_settings=settings,
            tool_use_behavior="stop_on_first_tool",
        )
        result = await agents.Runner.run(agent, TEXT)
        assert result.final_output == str(sum(seen[0]))
        streamed = agents.Runner.run_streamed(agent, TEXT)
        kinds = {event.type async for event in streamed.stream_events()}
        assert "raw_response_event" in kinds
        assert streamed.final_output == str(sum(seen[1]))
        talker = agents.Agent(name="Talker", model=model, model_settings=agents.ModelSettings(max_tokens=60))
        history = [*result.to_input_list(), {"role": "user", "content": "And one more?"}]
        assert [item.get("type") for item in history] == [None, "function_call", "function_call_output", None]
        assert isinstance((await agents.Runner.run(talker, history)).final_output, str)


def test_what_codex_sends_is_too_long_for_this_model(demo_server):
    """A 400 that says so, in the words that it looks for."""
    answer = httpx.post(f"{demo_server}/v1/responses", json=codex())
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "maximum context length" in error["message"]
    assert error["code"] == "context_length_exceeded"
    assert error["param"] in ("input", "tools")
