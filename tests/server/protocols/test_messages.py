"""/v1/messages, held against Anthropic's own types and accumulator."""

import asyncio
import json
import logging
import re

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from httpx import ASGITransport, AsyncClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from engine import FinishReason, RequestFailed
from server.http import sse
from server.http.app import create_app
from server.protocols.messages.writer import PREFIX, MessagesWriter
from server.settings.tree import build
from tests.server.replies.test_tool_calls import PIECES
from tests.server.tools.asking import LOOK, NOW, PLACE

from .asking import answer, cut, events_of, told, whole

EVENTS = TypeAdapter(RawMessageStreamEvent)
TOOLS = [
    {"name": "look", "description": "Look there.", "input_schema": PLACE},
    {"type": "custom", "name": "now", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}},
]
USER = {"role": "user", "content": "hi"}
HEADERS = {"anthropic-version": "2023-06-01", "anthropic-beta": "what-nobody-knows-2027-01-01,context-1m"}


def error_of(response, status):
    """The error, which is in Anthropic's form."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert set(body["error"]) - {"details"} == {"type", "message"}
    return body["error"]


@pytest.fixture
def post(api):
    async def post(path="", **body):
        body = {"max_tokens": 50, "messages": [USER], **body} if not path else {"messages": [USER], **body}
        return await api.client.post(f"/v1/messages{path}", json=body, headers=HEADERS)

    return post


@pytest.fixture
def ask(post):
    async def ask(**body):
        response = await post(**body)
        assert response.status_code == 200, response.text
        Message.model_validate_json(response.text, strict=True)
        return response.json()

    return ask


@pytest.fixture
def stream(post):
    async def stream(**body):
        response = await post(stream=True, **body)
        assert response.status_code == 200, response.text
        events = events_of(response.text)
        for event in events:
            if event["type"] != "ping":
                EVENTS.validate_json(json.dumps(event), strict=True)
        return events

    return stream


@pytest.fixture
def prompt(engine):
    """What the model has seen of the last request."""
    return lambda: bytes(engine.submissions[-1].prompt_ids).decode()


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
    message, buffers = None, {}
    for event in events:
        if event["type"] == "ping":
            continue
        parsed = EVENTS.validate_json(json.dumps(event))
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
@pytest.mark.parametrize("text", [NOW, f"Well: <{LOOK}\n{NOW}\n", "a < b", "", f"{LOOK}{LOOK[:62]}", LOOK[:60]])
async def test_the_stream_adds_up_to_the_answer(ask, stream, says, text, size):
    end = FinishReason.STOP if text.endswith((">", "b", "\n", "")) else FinishReason.LENGTH
    says(text, size=1000, end=end)
    expected = await ask(tools=TOOLS)
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


async def test_max_tokens_need_not_fit_the_context(ask, engine):
    await ask(max_tokens=100_000)
    assert engine.submissions[-1].sampling.max_tokens == 128 - 5


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ({"system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "<s>a\nb<u>hi"),
        ({"messages": [{"role": "system", "content": "c"}, USER]}, "<s>c<u>hi"),
        (
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "x", "signature": "y"},
                            {"type": "text", "text": "b"},
                            {"type": "tool_use", "id": "t2", "name": "now", "input": {"é": 1}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "t1", "content": "12"},
                            {
                                "type": "tool_result",
                                "tool_use_id": "t2",
                                "is_error": True,
                                "content": [
                                    {"type": "text", "text": "1"},
                                    {"type": "tool_reference", "tool_name": "3"},
                                ],
                            },
                            {"type": "text", "text": "go"},
                            {"type": "text", "text": "on", "cache_control": {"type": "ephemeral"}},
                        ],
                    },
                ]
            },
            '<u>hi<a>b<tool_call>{"name": "now", "arguments": {"é": 1}}</tool_call><t>12<t>1\n3<u>go\non',
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "now", "input": {}}]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]},
                ]
            },
            '<a><tool_call>{"name": "now", "arguments": {}}</tool_call><t>',
        ),
    ],
)
async def test_blocks_are_turns(ask, prompt, body, seen):
    await ask(**body)
    assert prompt() == seen


async def test_a_last_message_of_the_assistant_is_gone_on_with(ask, api, post):
    messages = [USER, {"role": "assistant", "content": "Well"}]
    answer = await ask(messages=messages)
    assert answer["content"] == [{"type": "text", "text": "one two"}]
    called = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "now", "input": {}}]}
    error = error_of(await post(messages=[USER, called]), 400)
    assert error["message"].startswith("`messages.1`")


async def test_what_is_passed_by_is_logged_once(ask, caplog):
    caplog.set_level(logging.WARNING)
    content = [{"type": "server_tool_use", "id": "1", "name": "web_search", "input": {}}, {"type": "text", "text": "a"}]
    for _ in range(2):
        await ask(
            tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}],
            messages=[USER, {"role": "assistant", "content": content}, USER],
            thinking={"type": "adaptive"},
            context_management={"edits": []},
            betas=["x"],
        )
    lines = [record.message for record in caplog.records if record.message.startswith("ignoring")]
    assert sorted(lines) == [
        "ignoring blocks of the type 'server_tool_use'",
        "ignoring the unknown request field 'betas'",
        "ignoring tools of the type 'web_search_20250305'",
    ]


@pytest.mark.parametrize(
    ("choice", "shown", "yes", "no"),
    [
        (None, "look now ", ["text", NOW, f"{NOW}\n{NOW}"], []),
        ({"type": "auto", "disable_parallel_tool_use": True}, "look now ", ["text", NOW], [f"{NOW}\n{NOW}"]),
        ({"type": "any"}, "look now ", [NOW, LOOK], ["text"]),
        ({"type": "tool", "name": "look"}, "look now ", [LOOK], [NOW, "text"]),
        ({"type": "none"}, "", [], []),
    ],
)
async def test_choices_of_tools(ask, engine, prompt, accepts, choice, shown, yes, no):
    await ask(tools=[{"type": "bash_20250124", "name": "bash"}, *TOOLS], tool_choice=choice)
    assert prompt() == f"{shown}<u>hi"
    constraint = engine.submissions[-1].sampling.constraint
    assert (constraint is None) == (not shown)
    for text in yes:
        assert accepts(constraint, text)
    for text in no:
        assert not accepts(constraint, text)


@pytest.mark.parametrize("place", ["output_config", "output_format"])
async def test_what_the_answer_must_be(ask, engine, accepts, place):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    asked = {"type": "json_schema", "schema": schema}
    await ask(**{place: {"format": asked, "effort": "high"} if place == "output_config" else asked})
    constraint = engine.submissions[-1].sampling.constraint
    assert accepts(constraint, '{"a": 5}')
    assert not accepts(constraint, "{}")


async def test_parameters_reach_the_engine(ask, engine):
    await ask(
        max_tokens=9,
        temperature=0.7,
        top_p=0.5,
        top_k=3,
        seed=7,
        diffusion={"threshold": 0.6, "cache": "prefix"},
        service_tier="auto",
    )
    [submission] = engine.submissions
    sampling = submission.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (9, 0.7, 0.5, 7)
    assert sampling.top_k == 3
    assert (submission.diffusion.threshold, submission.diffusion.cache) == (0.6, "prefix")


async def test_fields_of_other_routes_may_say_nothing(ask):
    await ask(
        parallel_tool_calls=True,
        instructions="",
        input=[],
        text={"format": {"type": "text"}},
        reasoning={"effort": None},
    )


async def test_tokens_are_counted(post, ask, engine):
    body = {"system": "Be brief.", "tools": TOOLS, "messages": [USER]}
    response = await post("/count_tokens", **body)
    assert response.status_code == 200, response.text
    await ask(**body)
    assert response.json() == {"input_tokens": len(engine.submissions[-1].prompt_ids)}
    assert error_of(await post("/count_tokens", messages=[]), 400)["message"].startswith("`messages`")
    assert error_of(await post("/count_tokens", model="gpt"), 404)["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("body", "path", "why"),
    [
        ({"max_tokens": None}, "max_tokens", "provide"),
        ({"max_tokens": 0}, "max_tokens", "greater"),
        ({"messages": None}, "messages", "provide"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [5]}, "messages.0", "dictionary"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "provide"),
        ({"messages": [{"role": "user", "content": {}}]}, "messages.0.content", "blocks"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0", "text alone"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "messages.0.content.0", "form"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "provide"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}],
                    }
                ]
            },
            "messages.0.content.0.content.0",
            "no images",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
            "messages.0.content.0",
            "assistant",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "1"}]}]},
            "messages.0.content.0",
            "of the user",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f"}]}]},
            "messages.0.content.0.input",
            "provide",
        ),
        ({"system": 5}, "system", "blocks of text"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema", "provide"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name", "pattern"),
        (
            {
                "tools": [
                    {"type": "bash_20250124", "name": "b"},
                    {"name": "f", "input_schema": {"if": {}}, "strict": True},
                ]
            },
            "tools.1.input_schema",
            "#/if: the keyword `if`",
        ),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools", "two functions of the name `look`"),
        ({"tool_choice": "any"}, "tool_choice", "dictionary"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "no `tools`"),
        ({"tool_choice": {"type": "tool"}, "tools": TOOLS}, "tool_choice", "`name`"),
        ({"tool_choice": {"type": "tool", "name": "f"}, "tools": TOOLS}, "tool_choice", "none of `tools`"),
        ({"temperature": 3}, "temperature", "less"),
        ({"stop_sequences": 5}, "stop_sequences", "list of strings"),
        ({"stop": ["a"]}, "stop", "`stop_sequences`"),
        ({"n": 2}, "n", "one answer"),
        ({"include_reasoning": False}, "include_reasoning", "not supported here"),
        ({"seed": "x"}, "seed", "integer"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort", "'low'"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema", "provide"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"if": {}}}}},
            "output_config.format.schema",
            "#/if",
        ),
        ({"messages": [{"role": "user", "content": "a" * 2100}]}, "messages", "prompt is too long: "),
        ({"parallel_tool_calls": False, "tools": TOOLS}, "parallel_tool_calls", "disable_parallel_tool_use"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "`output_config.effort`"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "`output_config.effort`"),
        ({"text": {"format": {"type": "json_object"}}}, "text", "`output_config.format`"),
        ({"instructions": "Be brief."}, "instructions", "`system`"),
        ({"input": "a"}, "input", "`messages`"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored"),
        ({"max_output_tokens": 5}, "max_output_tokens", "`max_tokens`"),
        ({"diffusion": {"x": 1}}, "diffusion.x", "known"),
        ({"diffusion": {"step_map": True}}, "diffusion.step_map", "`diffusion.trace`"),
    ],
)
async def test_a_bad_value_names_its_field(post, engine, body, path, why):
    error = error_of(await post(**body), 400)
    assert error["type"] == "invalid_request_error"
    assert f"`{path}`" in error["message"]
    assert why in error["message"]
    assert not engine.streams


async def test_errors_have_anthropics_form(api, engine, tokenizer, post):
    assert error_of(await post(model="gpt"), 404)["type"] == "not_found_error"
    assert error_of(await api.client.get("/v1/messages"), 405)["type"] == "invalid_request_error"
    assert error_of(await api.client.post("/v1/messages/batches", json={}), 404)["type"] == "not_found_error"
    assert error_of(await api.client.post("/v1/messages/", content="x"), 415)["type"] == "invalid_request_error"
    long = {"content": "x" * 5000, "headers": {"content-type": "application/json"}}
    assert error_of(await api.client.post("/v1/messages", **long), 413)["type"] == "request_too_large"
    api.error_of(await api.client.post("/v1/messagesx", json={}), 404)
    engine.places = 0
    response = await post()
    assert error_of(response, 429)["type"] == "rate_limit_error"
    assert response.headers["retry-after"]
    engine.places = 8
    engine.script = lambda _: ["one ", RequestFailed("secret")]
    error = error_of(await post(), 500)
    assert error["type"] == "api_error"
    assert "secret" not in error["message"]


async def test_a_thread_is_refused_so_that_clients_go_on_without(post):
    error = error_of(await post(thread={"type": "create"}), 400)
    assert error["details"] == {"error_code": "thread_unsupported_request"}
    assert "details" not in error_of(await post(max_tokens=0), 400)


async def test_a_stream_that_fails_says_so(post, engine):
    engine.script = lambda _: ["one ", RequestFailed("secret")]
    response = await post(stream=True)
    *_, last = events_of(response.text)
    assert last["error"]["type"] == "api_error"
    assert last["request_id"] == response.headers["request-id"]
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "sk-one"}, 200),
        ({"authorization": "Bearer sk-one"}, 200),
        ({"authorization": "Bearer none", "x-api-key": "sk-one"}, 200),
        ({"authorization": "Bearer sk-one", "x-api-key": "none"}, 200),
        ({"x-api-key": "none"}, 401),
        ({}, 401),
    ],
)
async def test_keys_come_in_either_header(api, engine, tokenizer, headers, status):
    app = create_app(engine, tokenizer, build({"api_key": ["sk-one"]}))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        response = await client.post("/v1/messages", json={"max_tokens": 5, "messages": [USER]}, headers=headers)
    if status == 200:
        assert response.status_code == 200
    else:
        assert error_of(response, status)["type"] == "authentication_error"


async def test_a_silent_stream_pings(post, engine, monkeypatch):
    monkeypatch.setattr(sse, "SILENCE_SECONDS", 0.01)

    def play(stream):
        loop = asyncio.get_running_loop()
        loop.call_later(0.2, stream.put, "late", FinishReason.STOP)

    engine.script, engine.play = None, play
    events = events_of((await post(stream=True)).text)
    assert [event["type"] for event in events].count("ping") > 3
    assert events[-1]["type"] == "message_stop"


def test_reasoning_is_a_block_of_its_own():
    text = f"<think>\nFirst.\n</think>\n\nWell.{NOW}"
    found = folded(told(writer(), cut(text, [3, 12, 15])))
    thinking, words, call = found["content"]
    assert (thinking["type"], thinking["thinking"], thinking["signature"]) == ("thinking", "First.", "")
    assert (words["text"], call["name"]) == ("Well.", "now")
    assert said(found) == said(whole(writer(), text))
