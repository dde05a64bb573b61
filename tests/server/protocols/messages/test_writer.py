"""Answers of /v1/messages, whole and streamed, held against Anthropic's own types and accumulator."""

import asyncio
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import FinishReason
from server.http import sse
from server.protocols.messages.writer import PREFIX, MessagesWriter
from tests.server.protocols.asking import answer, cut, events_of, told, whole
from tests.server.protocols.messages.asking import TOOLS, event_type
from tests.server.replies.test_tool_calls import PIECES
from tests.server.tools.asking import LOOK, NOW


async def test_an_answer(ask, prompt):
    answer = await ask(system="Be brief.", metadata={"user_id": "u"}, max_tokens=7)
    assert prompt() == "<s>Be brief.<u>hi"
    assert answer["usage"].pop("diffusion")["forwards"] == 4
    assert re.fullmatch("msg_[0-9a-f]{32}", answer.pop("id"))
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [{"type": "text", "text": "one two"}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 17,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 7,
        },
    }


async def test_calls_and_text_are_blocks_in_order(ask, says):
    says(f"Well:\n{LOOK}\n{NOW}")
    answer = await ask(tools=TOOLS)
    text, look, now = answer["content"]
    assert text == {"type": "text", "text": "Well:"}
    assert (look["name"], look["input"]) == ("look", {"place": "Rome"})
    assert (now["name"], now["input"]) == ("now", {})
    assert all(re.fullmatch("toolu_[0-9a-f]{24}", call["id"]) for call in (look, now))
    assert look["id"] != now["id"]
    assert answer["stop_reason"] == "tool_use"


async def test_a_stream_has_every_event_in_order(stream, says):
    says("Well:\n" + LOOK, size=55)
    events = await stream(tools=TOOLS)
    call = events[5]["content_block"]["id"]
    start, *rest = events
    usage = rest[-2].pop("usage")
    assert start["message"]["content"] == []
    assert start["message"]["stop_reason"] is None
    assert start["message"]["usage"]["input_tokens"] == usage["input_tokens"] > 0
    assert usage["output_tokens"] == len(f"Well:\n{LOOK}")
    assert rest == [
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Well:"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": call, "name": "look", "input": {}},
        },
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"place'}},
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": '": "Rome"}'},
        },
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}},
        {"type": "message_stop"},
    ]


def folded(events):
    """What Anthropic's client makes of a stream."""
    from anthropic.lib.streaming._messages import accumulate_event

    message, buffers = None, {}
    for event in events:
        if event["type"] == "ping":
            continue
        parsed = event_type().validate_json(json.dumps(event))
        message = accumulate_event(event=parsed, current_snapshot=message, json_bufs=buffers)
    for block in message.content:
        if block.type == "tool_use" and not isinstance(block.input, dict):
            block.input = {}  # arguments that no constraint has made
    return message.to_dict()


def said(message):
    """An answer without what differs between two of them."""
    blocks = [(block["type"], block.get("text"), block.get("name"), block.get("input")) for block in message["content"]]
    return blocks, message["stop_reason"], message["stop_sequence"], message["usage"]["output_tokens"]


def writer():
    return MessagesWriter(answer(PREFIX), is_bounded_by_context=False)


SOUND = [piece for piece in PIECES if piece not in ("\\", "{", "[", "]", ",", ":", "}")]
"""Without those that make arguments no beginning of JSON, which no constraint lets through and the client refuses."""


@given(
    st.lists(st.sampled_from(["<think>", "</think>", *SOUND]), max_size=12).map("".join),
    st.data(),
    st.sampled_from(["stop", "length"]),
)
@settings(max_examples=40)
def test_any_cut_of_any_answer_adds_up_to_the_whole_one(text, data, end):
    end = FinishReason(end)
    cuts = data.draw(st.sets(st.integers(0, len(text))))
    expected = whole(writer(), text, end)
    events = told(writer(), cut(text, cuts), end)
    texts = [event["delta"].get("partial_json", "") for event in events if event["type"] == "content_block_delta"]
    try:
        found = folded(events)
    except ValueError:  # the client's, of arguments that are no beginning of JSON
        assert any(texts)
        return
    assert said(found) == said(expected)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("text", "end"),
    [
        *((text, FinishReason.STOP) for text in (NOW, f"Well: <{LOOK}\n{NOW}\n", "a < b", "")),
        *((text, FinishReason.LENGTH) for text in (f"{LOOK}{LOOK[:62]}", LOOK[:60], "a <")),
    ],
)
async def test_the_stream_adds_up_to_the_answer(ask, stream, says, text, end, size):
    says(text, size=1000, end=end)
    expected = await ask(tools=TOOLS)
    assert (expected["stop_reason"] == "max_tokens") == (end is FinishReason.LENGTH)
    says(text, size, end=end)
    assert said(folded(await stream(tools=TOOLS))) == said(expected)


@pytest.mark.parametrize(
    ("max_tokens", "stops", "end", "reason", "sequence"),
    [
        (5, [], FinishReason.LENGTH, "max_tokens", None),
        (100_000, [], FinishReason.LENGTH, "model_context_window_exceeded", None),
        (5, [], FinishReason.STOP, "end_turn", None),
        (5, ["x", " tw"], FinishReason.STOP, "stop_sequence", " tw"),
    ],
)
async def test_why_an_answer_ends(ask, stream, says, max_tokens, stops, end, reason, sequence):
    says("one two", end=end)
    body = {"max_tokens": max_tokens, "stop_sequences": stops}
    answer = await ask(**body)
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)
    [delta] = [event["delta"] for event in await stream(**body) if event["type"] == "message_delta"]
    assert delta == {"stop_reason": reason, "stop_sequence": sequence}
    assert answer["content"][0]["text"] == ("one" if sequence else "one two")


def test_reasoning_is_a_block_of_its_own():
    text = f"<think>\nFirst.\n</think>\n\nWell.{NOW}"
    found = folded(told(writer(), cut(text, [3, 12, 15])))
    thinking, words, call = found["content"]
    assert (thinking["type"], thinking["thinking"], thinking["signature"]) == ("thinking", "First.", "")
    assert (words["text"], call["name"]) == ("Well.", "now")
    assert said(found) == said(whole(writer(), text))


async def test_a_silent_stream_pings(post, engine, monkeypatch):
    monkeypatch.setattr(sse, "SILENCE_SECONDS", 0.01)

    def play(stream):
        loop = asyncio.get_running_loop()
        loop.call_later(0.2, stream.put, "late", FinishReason.STOP)

    engine.script, engine.play = None, play
    events = events_of((await post(stream=True)).text)
    assert [event["type"] for event in events].count("ping") > 3
    assert events[-1]["type"] == "message_stop"


def test_arguments_that_no_constraint_has_made_are_no_input():
    answer = whole(writer(), NOW.replace("{}", "[5]"))
    assert [(block["type"], block.get("input")) for block in answer["content"]] == [("tool_use", {})]
    answer = whole(writer(), NOW.replace("{}", "what"))
    assert [(block["type"], block.get("input")) for block in answer["content"]] == [("tool_use", {})]
