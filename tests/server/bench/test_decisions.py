"""`unmask bench decisions` against a real server: the ways to ask, as a table and as JSON."""

import json

import pytest

from server.cli import main


@pytest.mark.slow
def test_every_way(demo_server, capsys):
    few = ("bench", "decisions", "--base-url", demo_server, "--questions", "9", "--rounds", "1", "--joint", "4")
    assert main([*few, "--json"]) == 0
    decided, joint, chat = json.loads(capsys.readouterr().out)
    assert [one["way"] for one in (decided, joint, chat)] == [
        "decisions",
        "decisions, 4 on a canvas",
        "chat with a constraint",
    ]
    assert decided["forwards"] == 9
    assert joint["forwards"] == 3
    assert chat["forwards"] >= 9
    for one in (decided, joint, chat):
        assert one["questions"] == 9
        assert one["per_second"] * one["seconds"] > 8.9


def test_the_table(demo_server, capsys):
    assert main(["bench", "decisions", "--base-url", demo_server, "--questions", "3", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "questions/s" in printed
    assert "chat with a constraint" in printed
