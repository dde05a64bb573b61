"""What the tests of `unmask eval` share: the bundled model's tokenizer, and files of problems."""

import json
from pathlib import Path

import pytest

from engine import DEMO_MODEL
from server.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True, scope="module")
def tokenizer(demo_tokenizer):
    """The bundled model's tokenizer for all tests in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_tokenizer, "close", lambda: None)
        patch.setattr(Tokenizer, "load", lambda folder: {Path(DEMO_MODEL): demo_tokenizer}[folder])
        yield


@pytest.fixture
def problems(tmp_path):
    """`problems({...}, ...)`: a JSONL file with these lines."""

    def write(*lines):
        path = tmp_path / "problems.jsonl"
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        path.write_text(text, encoding="utf-8-sig")  # as some editors write it
        return str(path)

    return write
