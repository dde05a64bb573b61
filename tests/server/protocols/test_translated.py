"""Errors of a chat that a body was made into name the body's fields."""

import pytest
from fastapi.exceptions import RequestValidationError

from engine import ContextLengthExceeded, InvalidRequest
from server.protocols.translated import Names, translated
from server.schemas import WireRequest

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


def test_a_chat_that_is_none_is_told_in_the_bodys_words():
    body = WireRequest.model_validate({"seed": "x"})
    chat = {"messages": [{"role": "user", "content": "a"}]}
    with pytest.raises(RequestValidationError) as caught:
        translated(body, chat, {})
    assert caught.value.errors()[0]["loc"] == ("seed",)
    with pytest.raises(RequestValidationError) as caught:
        translated(WireRequest(), {"messages": [{"role": "user"}]}, {"messages.0": "input.4"})
    assert caught.value.errors()[0]["loc"][:2] == ("input", "4")


def test_only_shared_fields_are_taken_over():
    body = WireRequest.model_validate({"seed": 5, "n": 3, "top_k": 2})
    chat = translated(body, {"messages": [{"role": "user", "content": "a"}], "temperature": None}, {}).chat
    assert (chat.seed, chat.n, chat.top_k, chat.temperature) == (5, 1, 2, None)
