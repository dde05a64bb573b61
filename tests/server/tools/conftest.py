"""A model whose template knows tools, and one worker process that compiles for all tests."""

from contextlib import closing

import pytest

from engine import FinishReason
from server.http.app import create_app
from server.settings.tree import build
from server.text.tokenizer import Tokenizer

TEMPLATE = """\
{% for tool in tools or () %}{{ tool.function.name }} {% endfor %}\
{% for message in messages %}<{{ message.role[0] }}>{{ message.content }}\
{% for call in message.tool_calls %}\
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>\
{% endfor %}{% endfor %}"""
"""It knows tools, and takes few tokens: the engine has 128."""


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    with closing(Tokenizer.load(tokenizer_folder)) as tokenizer:
        tokenizer._tokenizer.chat_template = TEMPLATE
        yield tokenizer


@pytest.fixture(scope="session")
def constraints(tokenizer, make_engine):
    """One worker process for all tests."""
    with closing(create_app(make_engine(), tokenizer, build({})).state.service.constraints) as constraints:
        yield constraints


@pytest.fixture
def app(app, constraints):
    object.__setattr__(app.state.service, "constraints", constraints)
    return app


def blocks(text, size):
    return [text[start : start + size] for start in range(0, len(text), size)] or [""]


@pytest.fixture
def says(engine):
    """`says(text)`: what the model answers, in blocks."""

    def script(text, size=16, end=FinishReason.STOP):
        engine.script = lambda _: [*blocks(text, size), end]

    return script
