"""`unmask bench host`: the table, the JSON, and complaints in one line."""

import json

import pytest

from engine import HOST_PARTS
from server.cli import main

FEW = ("bench", "host", "--requests", "1", "3", "--steps", "2", "--clients", "0")


def test_json(capsys):
    assert main([*FEW, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 2
    assert [row["requests"] for row in printed["microseconds"]] == [1, 3]
    for row in printed["microseconds"]:
        assert row["total"] == pytest.approx(sum(row[part] for part in HOST_PARTS))
        assert min(row.values()) > 0


def test_what_is_watched_takes_longer_to_commit(capsys):
    figures = []
    for flags in ((), ("--trace",)):
        assert main(["bench", "host", "--requests", "64", "--steps", "24", "--clients", "0", "--json", *flags]) == 0
        figures += json.loads(capsys.readouterr().out)["microseconds"]
    assert figures[0]["commit"] < figures[1]["commit"]


def test_the_table(capsys):
    assert main(list(FEW)) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert any({"schedule", "choose", "commit", "tally", "all"} <= set(line) for line in lines)


@pytest.mark.slow
def test_a_step_beside_streaming_clients(capsys, monkeypatch):
    """The engine alone and a real server, with few clients; that the ratio is right is for an idle machine to say."""
    monkeypatch.setattr("server.bench.streaming.EACH", 1)
    assert main([*FEW[:-1], "2", "--json"]) == 0
    streaming = json.loads(capsys.readouterr().out)["streaming"]
    assert streaming["clients"] == 2
    for kind in ("alone", "streaming"):
        assert 1 <= streaming[kind]["requests"] <= 2
        assert streaming[kind]["microseconds"] > 0
    assert streaming["ratio"] == pytest.approx(
        streaming["streaming"]["microseconds"] / streaming["alone"]["microseconds"]
    )


@pytest.mark.parametrize(
    ("flags", "word"), [(("--requests", "0"), "0"), (("--steps", "5000"), "1023"), (("--model", "x"), "--model")]
)
def test_a_complaint_is_one_line(capsys, flags, word):
    assert main(["bench", "host", *flags]) == 2
    complaint = capsys.readouterr().err
    assert word in complaint
    assert complaint.count("\n") == 1
