"""The bundled checkpoints: one tokenizer for both, that of the families, and small enough for a package."""

import json

import pytest

from engine.demo import FOLDERS
from engine.demo.build_tokenizer import build
from engine.demo.chat import TEMPLATE

MOST_BYTES = 12 * 10**6


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_the_tokenizer_is_that_of_the_families(name):
    read = json.loads((FOLDERS[name] / "tokenizer.json").read_text())
    assert read == json.loads(build().to_str())
    assert (FOLDERS[name] / "chat_template.jinja").read_text() == TEMPLATE


@pytest.mark.parametrize("name", FOLDERS)
def test_a_checkpoint_is_small(name):
    assert (FOLDERS[name] / "model.safetensors").stat().st_size < MOST_BYTES
