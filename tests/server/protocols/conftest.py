"""The servers of the tests of tools: a model whose template knows tools, and says what the test has it say."""

from tests.server.tools.conftest import app, constraints, says, tokenizer  # noqa: F401
