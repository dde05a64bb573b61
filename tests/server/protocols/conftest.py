"""The servers of the tests of tools: a model whose template knows tools, and says what the test has it say."""

import pytest

from tests.server.tools.conftest import app, constraints, says, tokenizer  # noqa: F401


@pytest.fixture
def prompt(engine):
    """What the model has seen of the last request."""
    return lambda: bytes(engine.submissions[-1].prompt_ids).decode()
