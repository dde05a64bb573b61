"""`unmask bench decode`: the table, the JSON, the picture, and complaints in one line."""

import json

import pytest

from server.cli import main

TINY = ("bench", "decode", "--size", "tiny", "--prompt", "24", "--gen", "32", "--block", "16", "--repeats", "1")


def test_json_has_the_fields_of_a_row(capsys):
    assert main([*TINY, "--json", "--methods", "reference/baseline", "engine/window"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert list(out) == ["rows"]
    assert [row["method"] for row in out["rows"]] == ["reference/baseline", "engine/window"]
    assert set(out["rows"][0]) == {
        "method",
        "batch",
        "rows",
        "forwards",
        "seconds",
        "tokens_per_second",
        "ratio_to_baseline",
        "ratio_to_reference_dual",
        "ratio_to_first",
        "sampled",
        "peak_memory_bytes",
        "host_share",
        "host_us_per_step",
        "first_block_seconds",
        "kv_pages",
    }


def test_the_table_marks_samples(capsys):
    assert main([*TINY, "--methods", "reference/baseline", "engine/dual"]) == 0
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "~" in lines["reference/baseline"]
    assert "~" not in lines["engine/dual"]


def test_formats_are_methods(capsys):
    assert main([*TINY, "--methods", "engine/dual", "engine/dual:int8", "engine/window+16:fp8"]) == 0
    out = capsys.readouterr().out
    assert "engine/dual:int8" in out
    assert "engine/window+16:fp8" in out
    assert "…" not in out


@pytest.mark.slow
def test_a_compiled_model_is_every_methods(graphs, capsys):
    assert main([*TINY, "--compile", "--gen", "16", "--methods", "reference/dual", "engine/dual"]) == 0
    assert "tiny (compiled)" in capsys.readouterr().out
    num_graphs = len(graphs)
    assert num_graphs > 3
    assert main([*TINY, "--gen", "16", "--methods", "reference/dual"]) == 0
    assert "compiled" not in capsys.readouterr().out
    assert len(graphs) == num_graphs


def test_a_picture(tmp_path):
    assert main([*TINY, "--methods", "engine/dual", "--plot", str(tmp_path / "speed.png")]) == 0
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gen", "30"), "multiple of block"),
        (("--batch", "0"), "batch is 0"),
        (("--methods", "engine/lru"), "'engine/lru' is no method"),
        (("--size", "huge"), "huge"),
        (("--plot", "/nowhere/speed.png"), "no such folder"),
        (("--model", "/nowhere"), "--size"),
    ],
)
def test_complaints_are_one_line(flags, message, capsys):
    assert main([*TINY, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
