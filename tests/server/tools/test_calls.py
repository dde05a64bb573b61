"""Calls in answers and streams, and how an answer with calls ends."""

import re

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from engine import FinishReason

from .asking import LOOK, NAMED, NOW, USER, ask, stream


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


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(("text", "content"), [(f"a€\n{NOW}", "a€"), (f"{NOW}\n", ""), ("a \n", "a \n")])
async def test_log_probabilities_are_of_the_content_and_ids_of_all(api, says, text, content, size):
    says(text, size)
    [choice] = (await ask(api, logprobs=True, top_logprobs=1, return_token_ids=True))["choices"]
    ChatCompletion.model_validate(await ask(api, logprobs=True), strict=True)
    entries = choice["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == content
    assert (choice["message"]["content"] or "") == content
    assert bytes(choice["token_ids"]).decode() == text
    events = await stream(api, logprobs=True, top_logprobs=1, return_token_ids=True)
    chunks = [event["choices"][0]["logprobs"] or {"content": []} for event in events]
    assert [entry for chunk in chunks for entry in chunk["content"]] == entries


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


async def test_an_answer_goes_back_with_the_results(api, engine, says):
    says(f"Well:\n{LOOK}")
    message = (await ask(api))["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "Sun"}
    await ask(api, messages=[USER, message, result], tool_choice="none")
    written = '<tool_call>{"name": "look", "arguments": {"place": "Rome"}}</tool_call>'
    assert bytes(engine.submissions[-1].prompt_ids).decode() == f"<u>hi<a>Well:{written}<t>Sun"


async def test_a_message_goes_on_and_may_call(api, engine, says):
    says(f"ll.\n{NOW}")
    messages = [USER, {"role": "assistant", "content": "We"}]
    [choice] = (await ask(api, messages=messages, continue_final_message=True))["choices"]
    assert bytes(engine.submissions[-1].prompt_ids) == b"look now <u>hi<a>We"
    assert choice["message"]["content"] == "ll."
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "now"
