"""`unmask bench simulate`: its table, JSON and picture, traces, and what is said of flags that cannot be."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from server.bench.simulate.arrivals import lengths, read_trace
from server.cli import main

PAGE = Path(__file__).parents[3] / "docs" / "scale.md"
SIMULATED = re.compile(r"```\nunmask bench simulate (.*?)\n```\n\n(.*?\n\n.*?\n)\n", re.DOTALL)
"""Commands of the page, and what they print."""
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:05.4799600,110,27
"""
OURS = [{"seconds": 5, "prompt_tokens": 10, "output_tokens": 20, "conversation": 7},
        {"seconds": 2.5, "prompt_tokens": 30, "output_tokens": 4}]  # fmt: skip
QUICK = ("--seconds", "20", "--warm-up", "2", "--output-length", "64")


def printed(capsys, *argv):
    assert main(["bench", "simulate", *argv]) == 0
    return capsys.readouterr().out


def test_a_table_of_every_rate_router_and_number_of_replicas(capsys):
    out = printed(capsys, "--rate", "1", "2", "--replicas", "1", "2", "--router", "central", "round-robin", *QUICK)
    assert "llada-8b, a replica on 1 x H100 SXM at 0.5 of the roofline: dual+32, blocks of 32" in out
    assert "Simulated, not run." in out
    lines = [line.split("|") for line in out.splitlines() if "|" in line]
    rows = [tuple(cell.strip() for cell in line[:3]) for line in lines[2:]]
    assert rows == [
        (rate, replicas, router) for router in ("central", "round-robin") for rate in "12" for replicas in "12"
    ]


def test_json_of_a_goal(capsys):
    asked = ("--rate", "6", *QUICK, "--slo-seconds", "0.5", "--slo-share", "0.9", "--json")
    [row] = json.loads(printed(capsys, *asked))["rows"]
    assert row["goal_share"] >= 0.9
    assert row["replicas"] == row["mean_replicas"] > 1
    assert row["arrived"] == row["answered"]
    [row] = json.loads(printed(capsys, *asked, "--replicas", "1"))["rows"]
    assert row["goal_share"] < 0.9


def test_a_model_with_experts_on_several_devices(capsys):
    out = printed(capsys, "--model", "llada2-flash", "--devices", "4", "--rate", "2", *QUICK)
    assert "llada2-flash, a replica on 4 x H100 SXM at 0.5 of the roofline: block, blocks of 32" in out


def test_an_autoscaler(capsys):
    out = printed(capsys, "--rate", "2", "--autoscale", "0-3", "--start-seconds", "5", "--scale-at", "4", *QUICK)
    [row] = [line for line in out.splitlines() if "least-loaded" in line]
    assert row.split("|")[1].strip().endswith(")"), "the mean, and the most"


def test_a_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    printed(capsys, "--rate", "1", "2", "--plot", str(tmp_path / "fleet.png"), *QUICK)
    assert (tmp_path / "fleet.png").read_bytes().startswith(b"\x89PNG")


def test_traces(tmp_path, capsys):
    azure, ours = tmp_path / "azure.csv", tmp_path / "ours.jsonl"
    azure.write_text(AZURE)
    ours.write_text("\n".join(map(json.dumps, OURS)))
    first, second, third = read_trace(azure)
    assert (first.seconds, first.prompt, first.output) == (0.0, 4808, 10)
    assert (second.seconds, third.seconds) == pytest.approx((0.052, 1.5))
    assert len({each.conversation for each in (first, second, third)}) == 3
    assert [(each.seconds, each.prompt, each.conversation) for each in read_trace(ours, 10)] == [
        (0, 30, 2),
        (0.25, 10, 7),
    ]
    [row] = json.loads(printed(capsys, "--trace", str(azure), "--warm-up", "0", "--json", "--max-model-len", "4096"))[
        "rows"
    ]
    assert (row["rate"], row["arrived"], row["refused"]) == (None, 2, 1), "one is too long; the last is the end"


def test_lengths_of_flags():
    assert lengths("512").mean == 512
    assert (lengths("64-256").kind, lengths("64-256").spread) == ("uniform", 256)
    assert lengths("lognormal:600:1.5").spread == 1.5
    for text in ("", "0", "9-3", "1-", "exponential", "exponential:0", "lognormal:6", "normal:5:1", "exponential:nan"):
        with pytest.raises(ValueError):  # noqa: PT011 - argparse takes it from there
            lengths(text)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "say what arrives: --rate R, or --trace FILE"),
        (["--rate", "1", "--trace", "x.csv"], "--rate or --trace"),
        (["--rate", "0"], "above 0"),
        (["--trace", "/nowhere.csv"], "/nowhere.csv"),
        (["--rate", "1", "--hardware", "v100"], "v100"),
        (["--rate", "1", "--router", "dns"], "dns"),
        (["--rate", "1", "--model", "/nowhere"], "nowhere"),
        (["--rate", "1", "--model", "llada2-flash"], "give a replica more --devices"),
        (["--rate", "1", "--devices", "3"], "32 heads do not divide among 3 devices"),
        (["--rate", "1", "--efficiency", "2"], "--efficiency 2 is more than the roofline, 1"),
        (["--rate", "1", "--slo-seconds", "1", "--slo-share", "1.5"], "--slo-share 1.5 is no share"),
        (["--rate", "1", "--warm-up", "600"], "must be less than --seconds 600"),
        (["--rate", "1", "--autoscale", "4-2"], "4-2"),
        (["--rate", "1", "--autoscale", "1-2", "--replicas", "1"], "leave --replicas out"),
        (["--rate", "1", "--prompt-length", "long"], "--prompt-length"),
        (["--rate", "1", "--tokens-per-forward", "5"], "must divide the block, 32"),
        (["--rate", "1", "--plot", "/nowhere/x.png", *QUICK], "/nowhere/x.png"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, argv, message):
    assert main(["bench", "simulate", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "has no request"),
        ("a.csv", "TIMESTAMP,ContextTokens\n1,2\n", "request 1 lacks output_tokens or GeneratedTokens"),
        ("a.csv", "seconds,prompt_tokens,output_tokens\n1,2,x\n", "request 1: invalid literal"),
        ("a.csv", "seconds,prompt_tokens,output_tokens\nsoon,2,3\n", "request 1: Invalid isoformat"),
        ("a.csv", "seconds,prompt_tokens,output_tokens\n1,0,3\n", "at least one token"),
        ("a.csv", "seconds,prompt_tokens,output_tokens\nnan,1,3\n", "nan is no time"),
        ("a.jsonl", "{", "line 1 is no JSON"),
        ("a.jsonl", "3", "line 1 is no JSON object"),
    ],
)
def test_a_trace_that_cannot_be_read(capsys, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    assert main(["bench", "simulate", "--trace", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_matplotlib_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["bench", "simulate", "--rate", "1", "--plot", str(tmp_path / "x.png")]) == 2
    assert "unmask[plot]" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_the_page_shows_what_its_commands_print(capsys, number):
    command, shown = SIMULATED.findall(PAGE.read_text())[number]
    lines = [line.strip() for line in printed(capsys, *shlex.split(command)).strip().splitlines()]
    assert lines == shown.strip().splitlines()
