"""/v1/responses, held against OpenAI's own types and accumulator."""

import json
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from engine import FinishReason, RequestFailed
from server.protocols.responses.schema import ResponsesRequest
from server.protocols.responses.writer import PREFIX, ResponsesWriter
from tests.server.replies.test_tool_calls import PIECES
from tests.server.tools.asking import LOOK, NOW, PLACE

from .asking import answer, cut, events_of, told, whole

EVENTS = TypeAdapter(ResponseStreamEvent)
TOOLS = [
    {"type": "function", "name": "look", "description": "Look there.", "parameters": PLACE, "strict": True},
    {"type": "function", "name": "now"},
]
NAMED = {"type": "function", "name": "look"}
CALLED = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
"""As the template writes it."""


@pytest.fixture
def post(api):
    """`await post(...)`: the response to a body."""

    async def post(**body):
        return await api.client.post("/v1/responses", json={"input": "hi", **body})

    return post


@pytest.fixture
def ask(post):
    async def ask(**body):
        response = await post(**body)
        assert response.status_code == 200, response.text
        Response.model_validate_json(response.text, strict=True)
        return response.json()

    return ask


@pytest.fixture
def stream(post):
    async def stream(**body):
        response = await post(stream=True, **body)
        assert response.status_code == 200, response.text
        events = events_of(response.text)
        for number, event in enumerate(events):
            EVENTS.validate_json(json.dumps(event), strict=True)
            assert event["sequence_number"] == number
        return events

    return stream


@pytest.fixture
def prompt(engine):
    """What the model has seen of the last request."""
    return lambda: bytes(engine.submissions[-1].prompt_ids).decode()


async def test_an_answer(ask, prompt):
    told = await ask(instructions="Be brief.", metadata={"a": "b"}, temperature=0.5)
    assert prompt() == "<s>Be brief.<u>hi"
    [message] = told["output"]
    assert message["content"] == [{"type": "output_text", "text": "one two", "annotations": [], "logprobs": []}]
    assert (message["role"], message["status"]) == ("assistant", "incomplete")
    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert told["id"].startswith("resp_")
    assert (told["instructions"], told["metadata"], told["temperature"]) == ("Be brief.", {"a": "b"}, 0.5)
    assert told["store"] is False
    usage = told["usage"]
    assert usage.pop("diffusion")["forwards"] == 4
    assert usage == {
        "input_tokens": 17,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 24,
    }


async def test_calls_and_text_are_items_in_order(ask, says):
    says(f"Well:\n{LOOK}\n{NOW}")
    answer = await ask(tools=TOOLS)
    assert answer["status"] == "completed"
    assert answer["completed_at"] >= answer["created_at"]
    message, look, now = answer["output"]
    assert message["content"][0]["text"] == "Well:"
    assert (look["name"], look["arguments"], look["status"]) == ("look", '{"place": "Rome"}', "completed")
    assert (now["name"], now["arguments"]) == ("now", "{}")
    assert all(re.fullmatch("call_[0-9a-f]{24}", call["call_id"]) for call in (look, now))
    assert look["call_id"] != now["call_id"]
    assert [tool["name"] for tool in answer["tools"]] == ["look", "now"]


async def test_a_stream_has_every_event_in_order(stream, says):
    says("Well:\n" + NOW, size=30)
    events = await stream(tools=TOOLS)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[4]["delta"] == events[5]["text"] == "Well:"
    assert events[8]["item"]["status"] == "in_progress"
    assert events[8]["item"]["arguments"] == ""
    assert events[10]["arguments"] == "{}"
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call"]
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1


async def test_a_cut_stream_ends_as_incomplete(stream, says):
    says(f"{NOW}{LOOK[:50]}", end=FinishReason.LENGTH)
    *_, last = await stream(tools=TOOLS)
    assert last["type"] == "response.incomplete"
    assert [item["status"] for item in last["response"]["output"]] == ["completed", "incomplete"]
    says("", end=FinishReason.STOP)
    *_, last = await stream()
    assert last["type"] == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"] == ""


def folded(events):
    """What OpenAI's client makes of a stream."""
    from openai import omit

    state = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        state.handle_event(EVENTS.validate_json(json.dumps(event)))
        last = event
    return {**last["response"], "output": [item.model_dump(mode="json") for item in state._completed_output.values()]}


def said(response):
    """An answer without what differs between two of them."""
    items = [
        (item["type"], item["status"], item.get("content") and item["content"][0]["text"], item.get("arguments"))
        for item in response["output"]
    ]
    return items, response["status"], response["usage"]["output_tokens"]


def writer():
    return ResponsesWriter(answer(PREFIX), ResponsesRequest.model_validate({"input": "hi"}), [], 0.0)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", *PIECES]), max_size=12).map("".join),
    st.data(),
    st.sampled_from(["stop", "length"]),
)
def test_any_cut_of_any_answer_adds_up_to_the_whole_one(text, data, end):
    end = FinishReason(end)
    cuts = data.draw(st.sets(st.integers(0, len(text))))
    events = told(writer(), cut(text, cuts), end)
    expected = whole(writer(), text, end)
    assert said(events[-1]["response"]) == said(expected)
    assert said(folded(events)) == said(expected)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for item in expected["output"]:
        number = expected["output"].index(item)
        deltas = [event["delta"] for event in events if event.get("output_index") == number and "delta" in event]
        assert "".join(deltas) == (item["arguments"] if "arguments" in item else item["content"][0]["text"])


@pytest.mark.parametrize(
    ("items", "seen"),
    [
        ([{"role": "user", "content": "a"}], "<u>a"),
        ([], "<u>"),
        ("", "<u>"),
        (
            [
                {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "D"}]},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            ],
            "<s>S\n\nD<u>a",
        ),
        (
            [
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
                {
                    "type": "message",
                    "id": "msg_1",
                    "status": "completed",
                    "role": "assistant",
                    "phase": "commentary",
                    "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}],
                },
                {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "now", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "now", "arguments": ""},
                {"type": "web_search_call", "id": "ws_1", "status": "completed"},
                {"type": "function_call_output", "call_id": "c1", "output": "12"},
                {
                    "type": "function_call_output",
                    "call_id": "c2",
                    "output": [{"type": "input_text", "text": "13"}, {"type": "input_text", "text": "14"}],
                },
            ],
            f"<a>b{2 * CALLED}<t>12<t>13\n14",
        ),
        (
            [
                {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"},
                {"role": "assistant", "content": "b"},
                {"role": "assistant", "content": "c"},
                {"type": "function_call_output", "call_id": "c1", "output": "12"},
                {"role": "assistant", "content": "d"},
            ],
            f"<a>b\nc{CALLED}<t>12<a>d",
        ),
    ],
)
async def test_items_are_turns(ask, prompt, items, seen):
    await ask(input=items, **({"instructions": "S"} if seen.startswith("<s>") else {}))
    assert prompt() == seen


async def test_what_is_passed_by_is_logged_once(ask, caplog):
    caplog.set_level(logging.WARNING)
    tools = [{"type": "web_search"}, {"type": "namespace", "name": "x", "tools": []}, {"type": "custom", "name": "p"}]
    items = [{"role": "user", "content": "a"}, {"type": "mcp_call", "id": "1"}]
    for _ in range(2):
        await ask(tools=tools, input=items, client_metadata={"a": 1}, include=["reasoning.encrypted_content"])
    lines = [record.message for record in caplog.records if record.message.startswith("ignoring")]
    assert sorted(lines) == [
        "ignoring items of `input` of the type 'mcp_call'",
        "ignoring the unknown request field 'client_metadata'",
        "ignoring tools of the type 'custom'",
        "ignoring tools of the type 'namespace'",
        "ignoring tools of the type 'web_search'",
    ]


@pytest.mark.parametrize(
    ("choice", "shown", "has_constraint"),
    [
        (None, "look now ", True),
        ("auto", "look now ", True),
        ("none", "", False),
        ("required", "look now ", True),
        (NAMED, "look now ", True),
        ({"type": "allowed_tools", "mode": "required", "tools": [NAMED]}, "look ", True),
        ({"type": "allowed_tools", "tools": [{"type": "function", "name": "now"}]}, "now ", True),
    ],
)
async def test_choices_of_tools(ask, engine, prompt, choice, shown, has_constraint):
    answer = await ask(tools=[{"type": "web_search"}, *TOOLS], tool_choice=choice)
    assert prompt() == f"{shown}<u>hi"
    assert (engine.submissions[-1].sampling.constraint is not None) == has_constraint
    assert answer["tool_choice"] == (choice or "auto") or choice["type"] == "allowed_tools"


async def test_a_named_tool_alone_may_be_called(ask, engine, accepts):
    await ask(tools=TOOLS, tool_choice=NAMED)
    constraint = engine.submissions[-1].sampling.constraint
    assert accepts(constraint, LOOK)
    assert not accepts(constraint, NOW)
    await ask(tools=TOOLS, parallel_tool_calls=False)
    constraint = engine.submissions[-1].sampling.constraint
    assert not accepts(constraint, f"{NOW}\n{NOW}")


@pytest.mark.parametrize("strict", [None, False])
async def test_a_tool_that_is_not_strict_is_held_to_what_can_be_enforced(ask, engine, accepts, strict):
    place = {"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "b$"}]}
    parameters = {"type": "object", "properties": {"place": place}, "required": ["place"], "if": {}}
    await ask(tools=[{"type": "function", "name": "look", "parameters": parameters, "strict": strict}])
    constraint = engine.submissions[-1].sampling.constraint
    assert accepts(constraint, LOOK)
    assert not accepts(constraint, LOOK.replace('{"place": "Rome"}', "{}"))


@pytest.mark.parametrize("strict", [True, False, None])
async def test_a_tool_comes_back_as_strict_as_it_was(ask, strict):
    answer = await ask(tools=[{"type": "function", "name": "now", "strict": strict}])
    assert [tool["strict"] for tool in answer["tools"]] == [strict]


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": ["object"], "properties": {"place": {"type": "string"}}},
        {"properties": {"place": {"type": "any"}}},
        {"required": True},
        {"properties": {"place": {"enum": None}}},
        {"properties": {"place": {"pattern": "("}}},
    ],
)
async def test_a_sloppy_schema_does_not_end_an_agent(ask, engine, accepts, parameters):
    await ask(tools=[{"type": "function", "name": "look", "parameters": parameters}])
    constraint = engine.submissions[-1].sampling.constraint
    assert accepts(constraint, LOOK)
    assert not accepts(constraint, LOOK.replace('{"place": "Rome"}', "[]"))


async def test_what_the_text_must_be(ask, engine, accepts):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    answer = await ask(
        text={"format": {"type": "json_schema", "name": "x", "strict": True, "schema": schema}, "verbosity": "low"}
    )
    constraint = engine.submissions[-1].sampling.constraint
    assert accepts(constraint, '{"a": 5}')
    assert not accepts(constraint, "{}")
    assert answer["text"]["format"]["schema"] == schema
    await ask(text={"format": {"type": "json_object"}})
    assert accepts(engine.submissions[-1].sampling.constraint, "{}")
    await ask(text={"format": {"type": "text"}})
    assert engine.submissions[-1].sampling.constraint is None
    await ask(structured_outputs={"choice": ["a", "b"]})
    assert accepts(engine.submissions[-1].sampling.constraint, "b")


async def test_parameters_reach_the_engine(ask, engine):
    await ask(
        max_output_tokens=9,
        temperature=0.7,
        top_p=0.5,
        seed=7,
        top_k=3,
        logit_bias={"65": 5},
        reasoning={"effort": "low", "summary": "auto"},
        diffusion={"threshold": 0.6, "cache": "prefix"},
        truncation="auto",
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="s",
        max_tool_calls=3,
        stream_options={"include_obfuscation": False},
        n=1,
        user="u",
    )
    [submission] = engine.submissions
    sampling = submission.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (9, 0.7, 0.5, 7)
    assert (sampling.top_k, sampling.logit_bias) == (3, ((65, 5),))
    assert (submission.diffusion.threshold, submission.diffusion.cache) == (0.6, "prefix")


async def test_fields_of_other_routes_may_say_nothing(ask):
    await ask(stop_sequences=[], system="", output_config={}, output_format=None, reasoning_effort=None)


async def test_a_stop_string_ends_the_answer(ask):
    answer = await ask(stop=[" two"])
    assert answer["output"][0]["content"][0]["text"] == "one"
    assert answer["status"] == "completed"


LOGPROBS = {"include": ["message.output_text.logprobs"]}


@pytest.mark.parametrize("asked", [LOGPROBS, {"top_logprobs": 2}, {**LOGPROBS, "tools": TOOLS, "tool_choice": "none"}])
async def test_logprobs(ask, stream, asked):
    answer = await ask(**asked)
    [part] = answer["output"][0]["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"] == "one two"
    assert {len(entry["top_logprobs"]) for entry in part["logprobs"]} == {asked.get("top_logprobs", 0)}
    events = await stream(**asked)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for event in deltas for entry in event["logprobs"]] == part["logprobs"]
    [done] = [event for event in events if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == part["logprobs"]


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        ({"input": None}, "input", "provide"),
        ({"input": 5}, "input", "list"),
        ({"input": [5]}, "input.0", "item"),
        ({"input": [{"role": "user"}]}, "input.0.content", "provide"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input.0.role", "'user'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0", "no images"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0", "form"),
        ({"input": [{"role": "user", "content": {}}]}, "input.0.content", "parts of text"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0", "stored"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f"}]}, "input.0.arguments", "provide"),
        (
            {
                "input": [
                    {"role": "user", "content": "a"},
                    {"type": "reasoning", "summary": []},
                    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "[]"},
                ]
            },
            "input.2.arguments",
            "`input.2.arguments` must be the JSON text of an object",
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.name", "provide"),
        ({"tools": [{}]}, "tools.0.type", "provide"),
        ({"tools": [5]}, "tools.0", "dictionary"),
        ({"tools": [{"type": "web_search"}, {"type": "function", "name": "a b"}]}, "tools.1.name", "pattern"),
        (
            {
                "tools": [
                    {"type": "web_search"},
                    {"type": "function", "name": "f", "parameters": {"if": {}}, "strict": True},
                ]
            },
            "tools.1.parameters",
            "`tools.1.parameters`: #/if: the keyword `if`",
        ),
        ({"tools": [TOOLS[1], TOOLS[1]]}, "tools", "two functions of the name `now`"),
        ({"tool_choice": "any"}, "tool_choice", "`none`, `auto`, `required`"),
        ({"tool_choice": "required"}, "tool_choice", "no `tools`"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice", "no `tools`"),
        ({"tool_choice": {"type": "web_search"}, "tools": TOOLS}, "tool_choice", "`none`, `auto`, `required`"),
        ({"tool_choice": {"type": "function", "name": "f"}, "tools": TOOLS}, "tool_choice", "none of `tools`"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "'json_schema'"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "`schema`"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"if": {}}}}},
            "text.format.schema",
            "`text.format.schema`: #/if",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater"),
        ({"max_output_tokens": 1000}, "max_output_tokens", "context is 128"),
        ({"input": "a" * 200}, "input", "context is 128"),
        ({"include": ["message.output_text.logprobs"], "tools": TOOLS}, "include", "calls of `tools`"),
        ({"top_logprobs": 2, "tools": TOOLS}, "top_logprobs", "calls of `tools`"),
        ({"temperature": 3}, "temperature", "less"),
        ({"seed": "x"}, "seed", "integer"),
        ({"allowed_token_ids": [999]}, "allowed_token_ids", "vocabulary"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "'low'"),
        ({"metadata": {"a": 5}}, "metadata.a", "string"),
        ({"store": True}, "store", "nothing is stored"),
        ({"background": True}, "background", "only false"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
        ({"conversation": "c"}, "conversation", "nothing is stored"),
        ({"prompt": {"id": "p"}}, "prompt", "nothing is stored"),
        ({"max_tokens": 5}, "max_tokens", "`max_output_tokens`"),
        ({"n": 2}, "n", "one answer"),
        ({"include_reasoning": False}, "include_reasoning", "not supported here"),
        ({"response_format": {"type": "json_object"}}, "response_format", "`text.format`"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages", "`input`"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "`reasoning.effort`"),
        ({"stop_sequences": ["a"]}, "stop_sequences", "`stop`"),
        ({"system": "Be brief."}, "system", "`instructions`"),
        ({"output_config": {"effort": "low"}}, "output_config", "`reasoning.effort`"),
        ({"output_format": {"type": "json_schema", "schema": {}}}, "output_format", "`text.format`"),
        ({"diffusion": {"x": 1}}, "diffusion.x", "known"),
        ({"diffusion": {"step_map": True}}, "diffusion.step_map", "`diffusion.trace`"),
        ({"diffusion": {"cache": "x"}}, "diffusion.cache", "x"),
    ],
)
async def test_a_bad_value_names_its_field(api, post, engine, body, param, why):
    error = api.error_of(await post(**body), 400)
    assert error["param"] == param
    assert why in error["message"]
    assert not engine.streams


async def test_an_unknown_model_is_a_404(api, post):
    assert api.error_of(await post(model="gpt"), 404)["code"] == "model_not_found"


async def test_a_stream_that_fails_says_so(api, post, engine):
    engine.script = lambda _: ["one ", RequestFailed("secret")]
    response = await post(stream=True)
    *_, delta, error, failed = events_of(response.text)
    assert delta["type"] == "response.output_text.delta"
    assert error["type"] == "error"
    assert error["error"]["code"] == error["code"] == "internal_error"
    assert "secret" not in response.text
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["output"][0]["content"][0]["text"] == "one "
    assert failed["sequence_number"] == error["sequence_number"] + 1
    assert api.error_of(await post(), 500)["code"] == "internal_error"


async def test_a_full_queue_is_a_429(api, post, engine):
    engine.places = 0
    response = await post(stream=True)
    assert api.error_of(response, 429)["code"] == "rate_limit_exceeded"
    assert response.headers["retry-after"]


def test_reasoning_is_an_item_of_its_own():
    text = f"<think>\nFirst.\n</think>\n\nWell.{NOW}"
    events = told(writer(), cut(text, [3, 12, 15]))
    assert [event["type"] for event in events if "reasoning" in event["type"]] == [
        "response.reasoning_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
    ]
    for event in events:
        EVENTS.validate_json(json.dumps(event))
    reasoning, message, call = events[-1]["response"]["output"]
    assert (reasoning["type"], reasoning["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "First."}])
    assert reasoning["id"].startswith("rs_")
    assert message["content"][0]["text"] == "Well."
    assert call["name"] == "now"
    assert said(folded(events)) == said(whole(writer(), text))
