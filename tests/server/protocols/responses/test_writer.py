"""Answers of /v1/responses, whole and streamed, held against OpenAI's own types and accumulator."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState

from engine import FinishReason
from server.protocols.responses.schema import ResponsesRequest
from server.protocols.responses.writer import PREFIX, ResponsesWriter
from tests.server.protocols.asking import answer, cut, told, whole
from tests.server.protocols.responses.asking import EVENTS, TOOLS
from tests.server.replies.test_tool_calls import PIECES
from tests.server.tools.asking import LOOK, NOW


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
    says(f"{NOW}\n{LOOK[:20]}", end=FinishReason.LENGTH)
    *_, last = await stream(tools=TOOLS)
    assert [item["status"] for item in last["response"]["output"]] == ["completed"]
    says("", end=FinishReason.STOP)
    *_, last = await stream()
    assert last["type"] == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"] == ""


def folded(events):
    """What OpenAI's client makes of a stream."""
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
@settings(max_examples=40)
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


@pytest.mark.parametrize("size", [7, 1000])
async def test_logprobs_beside_calls_are_of_the_text(ask, stream, says, size):
    says(f"Well:\n{LOOK}\n{NOW}\nDone", size)
    answer = await ask(**LOGPROBS, tools=TOOLS)
    texts = [item["content"][0] for item in answer["output"] if item["type"] == "message"]
    assert [part["text"] for part in texts] == ["Well:", "\nDone"]
    for part in texts:
        assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
    assert not any("logprobs" in item for item in answer["output"] if item["type"] == "function_call")
    events = await stream(**LOGPROBS, tools=TOOLS)
    for event in events:
        if event["type"].startswith("response.output_text."):
            said = event.get("delta", event.get("text"))
            assert "".join(entry["token"] for entry in event["logprobs"]) == said


@pytest.mark.parametrize("strict", [True, False, None])
async def test_a_tool_comes_back_as_strict_as_it_was(ask, strict):
    answer = await ask(tools=[{"type": "function", "name": "now", "strict": strict}])
    assert [tool["strict"] for tool in answer["tools"]] == [strict]
