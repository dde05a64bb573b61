"""`unmask eval` as a user meets it."""

import json
import subprocess
import sys

import pytest

from engine import DiffusionParams
from server.cli import main
from server.eval.answerers import local

FIELDS = {
    "task", "cache", "unmask", "n", "accuracy", "accuracy_low", "accuracy_high", "agreement",
    "tokens_per_forward", "rows_per_token", "seconds",
}  # fmt: skip
AFTER = DiffusionParams().refresh_after


def rows_of(capsys, *argv):
    assert main(["eval", *argv, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    [(name, rows)] = json.loads(out).items()
    assert name == "rows"
    assert all(row.keys() >= FIELDS for row in rows)
    return rows


def fails(capsys, *argv):
    """The one line of a command that the user has to mend."""
    assert main(["eval", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_json_has_a_row_for_each_task_and_policy(capsys):
    flags = ["--tasks", "sort,facts", "--limit", "2", "--cache", "none,dual", "--unmask", "fixed,threshold"]
    flags += ["--max-tokens", "16", "--block-length", "16"]
    rows = rows_of(capsys, *flags, "--tokens-per-step", "1,4")
    assert [(row["task"], row["cache"], row["unmask"], row["value"]) for row in rows] == [
        (task, cache, unmask, value)
        for task in ("sort", "facts")
        for cache in ("none", "dual")
        for unmask, value in (("fixed", 1), ("fixed", 4), ("threshold", 0.9))
    ]
    first, faster = rows[0], rows[1]
    assert first["agreement"] == 1
    assert first["n"] == 2
    assert 0 <= first["accuracy_low"] <= first["accuracy"] <= first["accuracy_high"] <= 1
    assert faster["tokens_per_forward"] == pytest.approx(4 * first["tokens_per_forward"], rel=0.5)
    assert rows[5]["rows_per_token"] < first["rows_per_token"]


@pytest.mark.slow
def test_the_table_fits_a_terminal(capsys):
    assert main(["eval", "--tasks", "facts,reverse", "--limit", "2", "--max-tokens", "16"]) == 0
    out = capsys.readouterr().out
    assert "threshold 0.9" in out
    assert "…" not in out
    assert [line.split()[0] for line in out.splitlines() if "dual" in line] == ["reverse", "facts", "all"]


@pytest.mark.slow
def test_markdown_and_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "quality.png"
    asked = ["--tasks", "facts", "--limit", "2", "--max-tokens", "16"]
    assert main(["eval", *asked, "--markdown", "--plot", str(picture)]) == 0
    head, rule, line = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == line.count("|")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_named_before_anything_is_asked(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "unmask[plot]" in fails(capsys, "--limit", "1", "--plot", str(tmp_path / "x.png"))


def test_own_problems(capsys, problems):
    path = problems(
        {"prompt": "Sort these numbers: 9 3 5.", "answer": " Sorted: 3 5 9.\n"},
        {"messages": [{"role": "user", "content": "Sort these numbers: 9 3 5."}], "answer": "no", "task": "mine"},
    )
    rows = rows_of(capsys, "--data", path, "--max-tokens", "24")
    assert [(row["task"], row["n"], row["accuracy"]) for row in rows] == [("problems", 1, 1.0), ("mine", 1, 0.0)]


def test_export_and_data_ask_the_same(capsys, tmp_path):
    path = str(tmp_path / "exported.jsonl")
    chosen = ["--tasks", "story,word", "--limit", "2", "--seed", "5"]
    length = ["--max-tokens", "16", "--no-agreement"]
    assert main(["eval", *chosen, "--export", path]) == 0
    assert "4 problems" in capsys.readouterr().err
    told, read = rows_of(capsys, *chosen, *length), rows_of(capsys, "--data", path, "--limit", "4", *length)
    assert [(row["task"], row["correct"], row["tokens"]) for row in told] == [
        (row["task"], row["correct"], row["tokens"]) for row in read
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tasks", "word,chess"], "'chess' is no task"),
        (["--cache", "magic"], "'magic' is no cache policy"),
        (["--unmask", "magic"], "'magic' is no unmask policy"),
        (["--threshold", "high"], "--threshold: 'high' is no number above 0"),
        (["--factor", "1,0"], "--factor: '0' is no number above 0"),
        (["--tokens-per-step", "2,inf"], "--tokens-per-step: 'inf' is no number above 0"),
        (["--threshold", "0.9,2"], "diffusion.threshold"),
        (["--limit", "0"], "--limit: '0' is no whole number above 0"),
        (["--few-shot", "-1"], "--few-shot: '-1' is no whole number"),
        (["--cache", "dual", "--refresh-after", "1"], "--cache window"),
        (["--cache", "window", "--refresh-after", "1,x"], "--refresh-after: 'x' is no whole number"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--model", "nowhere/"], "nowhere"),
        (["--base-url", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["--json", "--markdown"], "not allowed with"),
        (["--guidance", "free,prior"], "--guidance: 'prior' is not one of free, posterior, model"),
        (["--calibration", "--tasks", "sort"], "answered by Yes or No"),
        (["--calibration", "--tasks", "yesno", "--cache", "dual"], "without a policy"),
        (["--calibration", "--tasks", "yesno", "--plot", "x.png"], "without a policy"),
        (["--decisions", "--tasks", "sort"], "--decisions is for"),
        (["--decisions", "--tasks", "yesno", "--unmask", "fixed"], "--decisions asks by one forward, without a policy"),
        (["--decisions", "--tasks", "yesno", "--plain"], "asked by the chat template"),
        (["--decisions", "--tasks", "yesno", "--few-shot", "2"], "questions of one message"),
        (["--decisions", "--calibration"], "not allowed with"),
        (["--plain", "--tasks", "tool"], "tool needs the chat template"),
        (["--kv-dtype", "auto,int4"], "'int4' is no KV format; choose among auto, int8, fp8"),
        (["--kv-dtype", "int8,auto/0.1"], "kv_prune is 0.1, which needs kv_dtype int8 or fp8"),
        (["--kv-dtype", "int8", "--base-url", "http://127.0.0.1:9"], "--kv-dtype is for a local model"),
        (["--decisions", "--kv-dtype", "int8"], "without a policy"),
        (["--quantization", "none,int3"], "'int3' is no format of weights; choose among none, int8, int4, fp8"),
        (["--quantization", "int8", "--base-url", "http://127.0.0.1:9"], "--quantization is for a local model"),
        (["--calibration", "--quantization", "int8"], "without a policy"),
        (["--colour"], "--colour"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, argv, message):
    assert message in fails(capsys, "--limit", "1", *argv)  # or all problems of all tasks would be made first


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        {"prompt": "a"},
        {"answer": "a"},
        {"prompt": "a", "answer": 5},
        {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "answer": "a"},
        {"messages": [], "answer": "a"},
        {"messages": [{"role": "assistant", "content": "a"}], "answer": "a"},
        {"messages": [{"role": "user"}], "answer": "a"},
        {"prompt": "a", "answer": "a", "task": "story", "names": "Tom", "things": []},
        {"prompt": "a", "answer": "a", "story": "endless"},
        {"prompt": "a", "answer": "Yes", "yes": 2},
        {"prompt": "a", "answer": "a", "schema": "object"},
        {"prompt": "a", "answer": "a", "tools": ["add"]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": "add"}]}], "answer": "a"},
    ],
)
def test_a_bad_line_is_named(capsys, problems, line):
    assert "problems.jsonl, line 3" in fails(capsys, "--data", problems({"prompt": "a", "answer": "a"}, "", line))


def test_an_empty_file_is_an_error(capsys, problems):
    assert "holds no problems" in fails(capsys, "--data", problems())


@pytest.mark.slow
def test_a_server_gives_the_figures_of_the_model_itself(capsys, demo_server):
    asked = ["--tasks", "sort,facts", "--limit", "8", "--plain"]
    policy = ["--cache", "dual", "--unmask", "threshold", "--threshold", "0.7"]
    there = rows_of(capsys, *asked, *policy, "--base-url", f"{demo_server}/v1")
    unasked = rows_of(capsys, *asked, "--base-url", demo_server)
    wrong_model = fails(capsys, *asked, "--base-url", demo_server, "--model", "gpt-9")
    here = rows_of(capsys, *asked, *policy)
    assert [row.pop("block_length") for row in (*there, *here)] == [None] * len(there) + [32] * len(here)
    for row in (*here, *there):
        del row["seconds"]
    assert there == here, "but for what a server does not tell"
    assert {(row["cache"], row["unmask"], row["agreement"]) for row in unasked} == {(None, None, None)}
    assert all(row["tokens_per_forward"] > 1 for row in unasked)
    assert "gpt-9" in wrong_model


@pytest.mark.slow
def test_standard_output_holds_nothing_else():
    command = [sys.executable, "-m", "server.cli", "eval", "--tasks", "facts", "--limit", "1", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["rows"]
    assert result.stderr == ""


def test_formats_are_swept_and_compared_to_the_same_policy(capsys, monkeypatch):
    """One engine at a time; the first is asked for what the others are compared to, and never the exact decode."""
    opened, running = [], local.running
    monkeypatch.setattr(local, "running", lambda *asked: opened.append(asked[-2]) or running(*asked))
    flags = ["--tasks", "reverse,facts", "--limit", "2", "--max-tokens", "16", "--kv-dtype", "int8,fp8/0.01"]
    rows = rows_of(capsys, *flags, "--unmask", "threshold,fixed", "--tokens-per-step", "4")
    assert opened == [("auto", 0.0), ("int8", 0.0), ("fp8", 0.01)]
    assert [(row["task"], row["kv_dtype"], row["kv_prune"], row["unmask"]) for row in rows] == [
        (task, kv_dtype, kv_prune, unmask)
        for task in ("reverse", "facts")
        for unmask in ("threshold", "fixed")
        for kv_dtype, kv_prune in opened[1:]
    ]
    assert all(row["agreement"] >= 0.75 for row in rows)
    assert main(["eval", *flags, "--tasks", "facts"]) == 0
    out = capsys.readouterr().out
    assert "dual:int8" in out
    assert "dual:fp8/0.01" in out
    assert "agree: same as with weights, keys and values as they are" in " ".join(out.split())


def test_windows_are_swept(capsys):
    flags = ["--tasks", "story", "--limit", "2", "--block-length", "8", "--max-tokens", "24", "--no-agreement"]
    swept = ["--cache", "dual,window", "--refresh-before", "0,16", "--prompt-refresh", "2"]
    rows = rows_of(capsys, *flags, *swept)
    assert [row["window"] for row in rows] == [
        {},
        *({"refresh_before": n, "refresh_after": AFTER, "prompt_refresh": 2} for n in (0, 16)),
    ]
    assert {row["agreement"] for row in rows} == {None}
    dual, without, with_before = (row["rows"] / row["forwards"] for row in rows)
    assert without < with_before < dual
    assert main(["eval", *flags, "--cache", "window", "--refresh-after", "0", "--markdown"]) == 0
    assert "| window 32/0/0 |" in capsys.readouterr().out
