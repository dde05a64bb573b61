"""`unmask bench roofline`: its tables, JSON and picture, and that docs/performance.md shows what it prints."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from server.cli import main

PAGE = Path(__file__).parents[3] / "docs" / "performance.md"
GENERATED = re.compile(r"<!-- generated: unmask (.*?) -->\n\n(.*?)\n<!-- end -->", re.DOTALL)


def printed(capsys, *argv):
    assert main(["bench", "roofline", *argv]) == 0
    return capsys.readouterr().out


def cells(line):
    return [cell.strip() for cell in line.strip("|\n").split("|")]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "shown"), GENERATED.findall(PAGE.read_text()))
def test_the_page_shows_what_the_command_prints(capsys, command, shown):
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out == shown


def test_the_page_has_both_tables():
    commands = [command for command, _ in GENERATED.findall(PAGE.read_text())]
    assert commands[0] == "bench roofline"
    assert "--model small --flops" in commands[1]


def test_every_gpu_table_says_that_it_was_not_run(capsys):
    out = printed(capsys, "--batch", "1")
    titles = [line for line in out.splitlines() if line and not line.startswith("|")]
    assert len(titles) == 4
    assert all("not run on a GPU" in title for title in titles)


def test_a_table_is_aligned_and_marks_what_does_not_fit(capsys):
    out = printed(capsys, "--hardware", "h100", "--methods", "engine/dual", "--batch", "1", "64")
    rows = [line for line in out.splitlines() if line.startswith("| dual ")]
    assert [cells(row)[1] for row in rows] == ["1", "64 *"]
    assert cells(rows[0])[2] == "68,608"
    for table in out.split("\n\n")[1::2]:
        assert len({len(line) for line in table.splitlines() if line.startswith("|")}) == 1


def test_a_cpu(capsys):
    out = printed(capsys, "--model", "small", "--flops", "100", "--bandwidth", "20", "--batch", "1")
    ratios = {cells(line)[0]: cells(line)[4:] for line in out.splitlines() if "/" in line and line.startswith("|")}
    assert ratios["reference/baseline"][0] == ratios["reference/dual"][1] == "1"
    assert float(ratios["engine/window"][0]) > float(ratios["engine/dual"][0]) > float(ratios["engine/none"][0]) > 1


def test_json(capsys):
    rows = json.loads(printed(capsys, "--json", "--batch", "1", "8", "--methods", "engine/none"))["rows"]
    assert [(row["hardware"], row["batch"]) for row in rows] == [
        (name, batch) for name in ("H100 SXM", "H200 SXM") for batch in (1, 8)
    ]
    assert rows[0]["rows"] == 256 * 1920
    assert rows[0]["cost"]["flops"] > 0


@pytest.mark.slow
def test_a_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    printed(capsys, "--plot", str(tmp_path / "roofline.png"))
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_measuring_prints_the_command_that_uses_it(capsys, monkeypatch):
    monkeypatch.setattr("engine.bench.hardware.SECONDS", 0.05)
    figures, command = printed(capsys, "--measure", "--num-threads", "1").splitlines()
    assert re.match(r"[\d.]+ GFLOP/s in float32 products, [\d.]+ GB/s in a copy, [\d.]+ us an operator", figures)
    assert main(shlex.split(command)[1:]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--flops", "100"], "go together"),
        (["--flops", "0", "--bandwidth", "1"], "above 0"),
        (["--batch", "0"], "above 0"),
        (["--gen", "30"], "multiple of block"),
        (["--hardware", "v100"], "v100"),
        (["--methods", "engine/lru"], "engine/lru"),
        (["--model", "/nowhere"], "nowhere"),
        (["--plot", "/nowhere/x.png"], "/nowhere/x.png"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, argv, message):
    assert main(["bench", "roofline", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_missing_matplotlib_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["bench", "roofline", "--plot", str(tmp_path / "x.png")]) == 2
    assert "unmask[plot]" in capsys.readouterr().err


def test_bench_lists_what_can_be_measured(capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in ("decode", "serve", "roofline"))
    assert main(["bench", "fly"]) == 2
    assert main(["bench"]) == 2
