"""`unmask bench constraints`: the tables, the JSON, vocabularies that are made up, and complaints in one line."""

import json

import pytest

from engine import CONSTRAINT_PARTS, DEMO_MODEL
from server.bench.constraints import SCHEMAS
from server.bench.spellings import spellings
from server.cli import main

FEW = ("bench", "constraints", "--requests", "2", "--vocabulary", "600", "--temperature", "0,1")


def test_json(capsys):
    assert main([*FEW, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["vocabulary"] == 600
    assert [row["schema"] for row in printed["schemas"]] == list(SCHEMAS)
    for row in printed["schemas"]:
        assert min(row["states"], row["classes"], row["edges"], row["seconds"], row["lifting_seconds"]) > 0
    assert [row["temperature"] for row in printed["steps"]] == [0.0, 1.0]
    for row in printed["steps"]:
        assert row["requests"] == 2
        for part in CONSTRAINT_PARTS:
            assert 0 < row["milliseconds"][part] <= row["worst"][part]


def test_the_tables(capsys):
    assert main([*FEW, "--tokenizer", DEMO_MODEL]) == 0
    printed = capsys.readouterr().out
    for words in (*SCHEMAS, *CONSTRAINT_PARTS, "600 tokens"):
        assert words in printed


def test_spellings_are_different_and_always_the_same():
    made = spellings(3000)
    assert made == spellings(3000)
    assert len(set(made)) == len(made) == 3000
    assert made[:256] == [bytes([byte]) for byte in range(256)]
    assert spellings(300) == made[:300]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--requests", "0"), "0"),
        (("--vocabulary", "300"), "512"),
        (("--temperature", "x"), "x"),
        (("--temperature=-1,0",), "temperature"),
        (("--temperature", "nan"), "temperature"),
        (("--tokenizer", "ELSEWHERE"), "ELSEWHERE"),
    ],
)
def test_a_complaint_is_one_line(capsys, flags, word):
    assert main(["bench", "constraints", *flags]) == 2
    complaint = capsys.readouterr().err
    assert word in complaint
    assert complaint.count("\n") == 1
