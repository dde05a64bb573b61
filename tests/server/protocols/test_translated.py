"""Errors of a chat that a body was made into name the body's fields."""

import pytest
from fastapi.exceptions import RequestValidationError

from server.protocols.translated import translated
from server.schemas import WireRequest


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
