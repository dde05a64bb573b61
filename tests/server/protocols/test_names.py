"""Errors name a request's fields as its client has sent them."""

import pytest

from engine import ContextLengthExceeded, InvalidRequest
from server.protocols.names import Names

NAMES = Names({"messages": "input", "messages.1": "input.3", "max_tokens": "max_output_tokens", "a.b": "c"})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("messages", "input"),
        ("messages.0.content", "input.0.content"),
        ("messages.1.tool_calls.0", "input.3.tool_calls.0"),
        ("messages.10", "input.10"),
        ("messagesx", "messagesx"),
        ("a", "a"),
        ("a.b.c", "c.c"),
        ("seed", "seed"),
        ("", ""),
    ],
)
def test_the_longest_beginning_counts(path, name):
    assert NAMES.of(path) == name


@pytest.mark.parametrize(
    ("message", "param", "told"),
    [
        ("`max_tokens` and `seed` do not fit.", "max_tokens", "`max_output_tokens` and `seed` do not fit."),
        ("max_tokens is 5, too few.", "max_tokens", "max_output_tokens is 5, too few."),
        ("`messages.1.x`: `#/a` is none.", "messages.1.x", "`input.3.x`: `#/a` is none."),
        ("Nothing is named.", None, "Nothing is named."),
    ],
)
def test_messages_are_renamed_too(message, param, told):
    with pytest.raises(InvalidRequest) as caught, NAMES.used():
        raise ContextLengthExceeded(message, param)
    assert str(caught.value) == told
    assert caught.value.param == (NAMES.of(param) if param else None)
    assert isinstance(caught.value, ContextLengthExceeded)


CHAT = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("path", "body", "prompt", "length"),
    [
        ("/v1/completions", {"prompt": "a"}, "prompt", "max_tokens"),
        ("/v1/fim/completions", {"prompt": "a", "suffix": "b"}, "prompt", "max_tokens"),
        ("/v1/chat/completions", {**CHAT, "max_completion_tokens": 5}, "messages", "max_completion_tokens"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 5}, "messages", "max_tokens"),
        ("/v1/responses", {"input": "a", "max_output_tokens": 5}, "input", "max_output_tokens"),
        ("/v1/messages", {**CHAT, "max_tokens": 5}, "messages", "max_tokens"),
    ],
)
async def test_what_the_engine_refuses_is_told_in_the_routes_words(
    api, engine, monkeypatch, path, body, prompt, length
):
    def refuse(_):
        raise InvalidRequest("`prompt` and `max_tokens` do not fit `stop_ids`.", "max_tokens")

    monkeypatch.setattr(engine, "prepare", refuse)
    response = await api.client.post(path, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"] == f"`{prompt}` and `{length}` do not fit `stop_token_ids`."
    assert error.get("param", length) == length
