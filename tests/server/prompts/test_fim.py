"""Templates of coder models as holes."""

import pytest

from server.prompts.fim import TEMPLATES, with_hole

QWEN = "<|fim_prefix|>def f(x):\n    return <|fim_suffix|>\n\nf(1)<|fim_middle|>"
WRITTEN = {
    "Qwen2.5-Coder": (QWEN, "def f(x):\n    return <|fill:8|>\n\nf(1)"),
    "with a repository": (f"<|file_sep|>a.py\n{QWEN}", "<|file_sep|>a.py\ndef f(x):\n    return <|fill:8|>\n\nf(1)"),
    "middle begun": (QWEN + "x", "def f(x):\n    return x<|fill:8|>\n\nf(1)"),
    "StarCoder": ("<fim_prefix>ab<fim_suffix>yz<fim_middle>", "ab<|fill:8|>yz"),
    "StarCoder, suffix first": ("<fim_prefix><fim_suffix>yz<fim_middle>ab", "ab<|fill:8|>yz"),
    "Code Llama": ("<PRE> ab <SUF>yz <MID>", "ab<|fill:8|>yz"),
    "Code Llama, spaces of its own": ("<PRE>  ab  <SUF> yz  <MID>", " ab <|fill:8|> yz "),
    "Code Llama, suffix first": ("<PRE> <SUF>yz <MID> ab", "ab<|fill:8|>yz"),
    "nothing behind": ("<fim_prefix>ab<fim_suffix><fim_middle>", "ab<|fill:8|>"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_template(name):
    written, meant = WRITTEN[name]
    assert with_hole(written, 8, known=()) == meant


@pytest.mark.parametrize("text", ["ab", "<fim_prefix>ab", "<fim_suffix>yz<fim_prefix>ab<fim_middle>", "<|fill:3|>", ""])
def test_other_text(text):
    assert with_hole(text, 8, known=()) == text


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_model_that_knows_the_template_reads_it(template):
    text = f"{template.prefix}ab{template.suffix}yz{template.middle}"
    assert with_hole(text, 8, known={template.prefix}) == text
    assert with_hole(text, 8, known={other.prefix for other in TEMPLATES if other is not template}) != text
