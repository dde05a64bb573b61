"""What agents are written with, over a real socket, with the bundled model: responses and messages."""

import json
import warnings

import anthropic
import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.replays import claude_code, codex
from tests.test_tool_clients import ADD, QUESTION, SCHEMAS, Basket

TEXT = QUESTION[0]["content"]
RESPONSES_TOOLS = [
    {"type": "function", "name": "add", "description": "Adds.", "parameters": ADD},
    {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}},
]
MESSAGES_TOOLS = [
    {"name": "add", "description": "Adds.", "input_schema": ADD},
    {"name": "now", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}},
]
FUNCTIONS = {"add": lambda numbers, **_: sum(numbers), "now": lambda: "12:00"}


class Sum(BaseModel):
    """A sum."""

    total: int = Field(ge=0, le=99)


@pytest.fixture(scope="module")
def client(demo_server):
    with openai.OpenAI(base_url=f"{demo_server}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(demo_server):
    with anthropic.Anthropic(base_url=demo_server, api_key="none", max_retries=0) as client:
        yield client


def outputs(response):
    """An answer's items, without what differs between two answers."""
    return [
        (item.type, item.status, getattr(item, "arguments", None) or item.content[0].text) for item in response.output
    ]


def contents(message):
    """The same of a message's blocks."""
    return message.stop_reason, [block.model_dump(exclude={"id"}) for block in message.content]


class TestResponses:
    @pytest.mark.parametrize("choice", ["none", "auto", "required", {"type": "function", "name": "add"}])
    @pytest.mark.parametrize("temperature", [0, 1.5])
    def test_streams_are_the_answer(self, client, choice, temperature):
        body = {
            "model": "demo",
            "input": TEXT,
            "tools": RESPONSES_TOOLS,
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

    async def test_async(self, demo_server, client):
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

    def test_the_helpers_for_pydantic_classes(self, client):
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

    def test_an_answer_that_is_cut(self, client):
        answer = client.responses.create(model="demo", input=TEXT, max_output_tokens=3)
        assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        events = list(client.responses.create(model="demo", input=TEXT, max_output_tokens=3, stream=True))
        assert events[-1].type == "response.incomplete"
        assert outputs(events[-1].response) == outputs(answer)

    def test_a_loop_of_two_tools(self, client):
        """As it stands in OpenAI's guide: calls are run, results sent back behind what came before."""
        items = [{"role": "user", "content": TEXT}]
        for name in ("add", "now", None):
            choice = {"type": "function", "name": name} if name else "none"
            answer = client.responses.create(
                model="demo",
                input=items,
                tools=RESPONSES_TOOLS,
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

    def test_errors(self, client):
        with pytest.raises(openai.BadRequestError, match="nothing is stored") as told:
            client.responses.create(model="demo", input=TEXT, previous_response_id="resp_1")
        assert told.value.param == "previous_response_id"
        with pytest.raises(openai.BadRequestError, match="nothing is stored"):
            client.responses.create(model="demo", input=TEXT, store=True)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve("resp_1")

    def test_steps_are_told(self, client):
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


class TestMessages:
    @pytest.mark.parametrize("choice", ["none", "auto", "any", "tool"])
    @pytest.mark.parametrize("temperature", [0, 1])
    def test_streams_are_the_answer(self, claude, choice, temperature):
        body = {
            "model": "demo",
            "messages": QUESTION,
            "tools": MESSAGES_TOOLS,
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

    async def test_async(self, demo_server, claude):
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
            parsed = await other.messages.parse(model="demo", messages=QUESTION, max_tokens=60, output_format=Sum)
            assert isinstance(parsed.parsed_output, Sum)

    def test_the_helpers_for_pydantic_classes(self, claude):
        parsed = claude.messages.parse(model="demo", messages=QUESTION, max_tokens=60, output_format=Sum)
        assert isinstance(parsed.parsed_output, Sum)
        with claude.messages.stream(model="demo", messages=QUESTION, max_tokens=60, output_format=Sum) as events:
            assert events.get_final_message().parsed_output == parsed.parsed_output

    def test_a_loop_of_two_tools(self, claude):
        """As it stands in Anthropic's guide: calls are run, results sent back, until the answer calls nothing."""
        messages = list(QUESTION)
        for name in ("add", "now", None):
            choice = {"type": "tool", "name": name} if name else {"type": "none"}
            answer = claude.messages.create(
                model="demo", messages=messages, tools=MESSAGES_TOOLS, tool_choice=choice, max_tokens=100
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

    def test_the_tool_runner(self, claude):
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

    def test_the_models(self, claude):
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

    def test_errors(self, claude):
        with pytest.raises(anthropic.BadRequestError, match="`temperature`") as told:
            claude.messages.create(model="demo", messages=QUESTION, max_tokens=5, extra_body={"temperature": 5})
        assert told.value.type == "invalid_request_error"
        assert told.value.request_id
        with pytest.raises(anthropic.NotFoundError):
            claude.messages.create(model="claude", messages=QUESTION, max_tokens=5)

    def test_steps_are_told(self, claude):
        body = {"model": "demo", "messages": QUESTION, "max_tokens": 20}
        extra = {"diffusion": {"trace": True}}
        whole = claude.messages.create(**body, extra_body=extra)
        with claude.messages.stream(**body, extra_body=extra) as events:
            steps = [event for event in events if event.type == "unmask.step"]
            assert contents(events.get_final_message()) == contents(whole)
        assert len(steps) == len(whole.trace) > 1


@pytest.mark.parametrize(("path", "body"), [("/v1/responses", codex()), ("/v1/messages", claude_code())])
def test_what_agents_send_is_too_long_for_this_model(demo_server, path, body):
    """A 400 that says so, in the words that the agent looks for."""
    answer = httpx.post(f"{demo_server}{path}", json=body, headers={"anthropic-beta": "claude-code-20250219"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "maximum context length" in error["message"]
    if path == "/v1/responses":
        assert error["code"] == "context_length_exceeded"
        assert error["param"] in ("input", "tools")
    else:
        assert error["message"].startswith("prompt is too long")
