"""`unmask eval` as a user meets it, and the arithmetic behind its rows."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from engine import DEMO_MODEL, ConfigError, DemoProblem, DiffusionParams, demo_problems
from server.cli import main
from server.eval import calibration, questions
from server.eval.answers import Options
from server.eval.local import running
from server.eval.policy import PolicyPair, product
from server.eval.score import Row, pooled, wilson
from server.text.tokenizer import Tokenizer

FIELDS = {
    "task", "cache", "unmask", "n", "accuracy", "accuracy_low", "accuracy_high", "agreement",
    "tokens_per_forward", "rows_per_token", "seconds",
}  # fmt: skip
AFTER = DiffusionParams().refresh_after
VALUES = {"tokens_per_step": [1.0, 4.0], "threshold": [0.9], "factor": [1.0]}


@pytest.fixture(autouse=True, scope="module")
def tokenizer():
    """The bundled model's tokenizer for all tests in this process: its own process takes a second to start."""

    class Kept(Tokenizer):
        def close(self):
            pass

    tokenizer = Kept.load(Path(DEMO_MODEL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tokenizer, "load", lambda folder: {Path(DEMO_MODEL): tokenizer}[folder])
        yield
    Tokenizer.close(tokenizer)


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


@pytest.fixture
def problems(tmp_path):
    """`problems({...}, ...)`: a JSONL file with these lines."""

    def write(*lines):
        path = tmp_path / "problems.jsonl"
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        path.write_text(text, encoding="utf-8-sig")  # as some editors write it
        return str(path)

    return write


def test_json_has_a_row_for_each_task_and_policy(capsys):
    flags = ["--tasks", "sort,facts", "--limit", "3", "--cache", "none,dual", "--unmask", "fixed,threshold"]
    rows = rows_of(capsys, *flags, "--tokens-per-step", "1,4")
    assert [(row["task"], row["cache"], row["unmask"], row["value"]) for row in rows] == [
        (task, cache, unmask, value)
        for task in ("sort", "facts")
        for cache in ("none", "dual")
        for unmask, value in (("fixed", 1), ("fixed", 4), ("threshold", 0.9))
    ]
    first, faster = rows[0], rows[1]
    assert first["agreement"] == 1
    assert first["n"] == 3
    assert 0 <= first["accuracy_low"] <= first["accuracy"] <= first["accuracy_high"] <= 1
    assert faster["tokens_per_forward"] == pytest.approx(4 * first["tokens_per_forward"], rel=0.5)
    assert rows[5]["rows_per_token"] < first["rows_per_token"]


def test_the_table_fits_a_terminal(capsys):
    assert main(["eval", "--tasks", "facts,reverse", "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "threshold 0.9" in out
    assert "…" not in out
    assert [line.split()[0] for line in out.splitlines() if "dual" in line] == ["reverse", "facts", "all"]


def test_markdown_and_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "quality.png"
    assert main(["eval", "--tasks", "facts", "--limit", "2", "--markdown", "--plot", str(picture)]) == 0
    head, rule, line = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == line.count("|")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_named_before_anything_is_asked(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "unmask[plot]" in fails(capsys, "--plot", str(tmp_path / "x.png"))


def test_own_problems(capsys, problems):
    path = problems(
        {"prompt": "Sort these numbers: 9 3 5.", "answer": " Sorted: 3 5 9.\n"},
        {"messages": [{"role": "user", "content": "Sort these numbers: 9 3 5."}], "answer": "no", "task": "mine"},
    )
    rows = rows_of(capsys, "--data", path)
    assert [(row["task"], row["n"], row["accuracy"]) for row in rows] == [("problems", 1, 1.0), ("mine", 1, 0.0)]


def test_export_and_data_ask_the_same(capsys, tmp_path):
    path = str(tmp_path / "exported.jsonl")
    chosen = ["--tasks", "story,word", "--limit", "3", "--seed", "5"]
    assert main(["eval", *chosen, "--export", path]) == 0
    assert "6 problems" in capsys.readouterr().err
    told, read = rows_of(capsys, *chosen), rows_of(capsys, "--data", path, "--limit", "6")
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
        (["--plain", "--tasks", "tool"], "tool needs the chat template"),
        (["--colour"], "--colour"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, argv, message):
    assert message in fails(capsys, *argv)


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


def test_standard_output_holds_nothing_else():
    command = [sys.executable, "-m", "server.cli", "eval", "--tasks", "facts", "--limit", "1", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["rows"]
    assert result.stderr == ""


def test_solved_examples_come_first_and_are_not_asked(problems):
    [sort] = questions.from_tasks(["sort"], seed=1, limit=1, few_shot=2)
    assert [turn["role"] for turn in sort.messages] == ["user", "assistant"] * 2 + ["user"]
    path = problems({"prompt": "a", "answer": "A"}, {"prompt": "b", "answer": "B"})
    [question] = questions.from_file(questions.Path(path), limit=5, few_shot=1)
    assert question.plain == "Question: a\nAnswer: A\n\nQuestion: b\nAnswer:"
    assert question.check(" B\n")
    with pytest.raises(ConfigError, match="beside the 2 examples"):
        questions.from_file(questions.Path(path), limit=5, few_shot=2)


def test_policies_are_a_product():
    policies = product(["none", "dual"], ["fixed", "entropy_bound"], VALUES, 32)
    assert [(policy.cache, policy.label) for policy in policies] == [
        (cache, label) for cache in ("none", "dual") for label in ("fixed 1", "fixed 4", "entropy_bound")
    ]
    assert policies[1].diffusion(50) == {"cache": "none", "unmask": "fixed", "block_length": 32, "steps": 16}
    assert PolicyPair().diffusion(64) == {}


def test_windows_are_swept(capsys):
    flags = ["--tasks", "story", "--limit", "2", "--block-length", "8", "--no-agreement"]
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


def test_wilson():
    assert wilson(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1)


def test_pooling_sums_and_keeps_what_is_unknown_unknown():
    row = Row(task="a", policy=PolicyPair(), n=4, correct=3, agreed=2, tokens=10, forwards=5, rows=40, seconds=1.0)
    unknown = Row(
        task="b", policy=PolicyPair(), n=6, correct=6, agreed=None, tokens=7, forwards=None, rows=None, seconds=1
    )
    total = pooled([row, unknown])
    assert (total.n, total.accuracy, total.tokens) == (10, 0.9, 17)
    assert total.agreement is total.tokens_per_forward is total.rows_per_token is None
    assert (row.tokens_per_forward, row.rows_per_token, row.agreement) == (2, 4, 0.5)


@pytest.mark.parametrize("task", ["turn", "tool", "tale", "form", "yesno"])
def test_a_file_holds_all_that_a_question_is(capsys, tmp_path, task):
    path = tmp_path / "exported.jsonl"
    assert main(["eval", "--tasks", task, "--limit", "25", "--seed", "5", "--export", str(path)]) == 0
    there, here = questions.from_file(path, 25, 0), questions.from_tasks([task], 5, 25, 0)
    for read, told, problem in zip(there, here, demo_problems(task, 5, 25), strict=True):
        assert [dict(turn) for turn in read.messages] == [dict(turn) for turn in told.messages]
        assert (read.tools, read.schema, read.room, read.is_yes) == (told.tools, told.schema, told.room, told.is_yes)
        for text in (problem.answer, "Yes", "No", f"{problem.answer} {problem.answer}"):
            assert read.check(text) == told.check(text)


def test_solved_examples_of_tools_are_whole_conversations_with_the_same_tools():
    for question in questions.from_tasks(["tool"], seed=1, limit=8, few_shot=2):
        called = [call["id"] for turn in question.messages for call in turn.get("tool_calls", ())]
        answered = [turn["tool_call_id"] for turn in question.messages if turn["role"] == "tool"]
        assert set(answered) <= set(called)
        assert len(called) == len(set(called))


def test_plain_text_leaves_tools_out_of_all():
    assert "tool" in questions.choose_tasks(["all"])
    assert "tool" not in questions.choose_tasks(["all"], plain=True)


def test_guided_answers_fit_what_was_asked():
    """Whatever a model says that has never seen a form."""
    forms, tools = (questions.from_tasks([task], 1, 6, 0) for task in ("form", "tool"))

    async def answers(guidance):
        async with running(DEMO_MODEL, Options(max_tokens=64, plain=False), 8) as model:
            asked = [model.ask(question, PolicyPair(guidance=guidance)) for question in (*forms, *tools)]
            return [answer.text for answer in await asyncio.gather(*asked)]

    texts = asyncio.run(answers("posterior"))
    for question, text in zip(forms, texts, strict=False):
        jsonschema.validate(json.loads(text), dict(question.schema))
        assert list(json.loads(text)) == list(question.schema["properties"])
    for text in texts[len(forms) :]:
        assert "<tool_call>" not in text or DemoProblem(task="tool", prompt="", answer=text).check(text)


@pytest.mark.parametrize(
    ("probabilities", "truths", "brier", "error"),
    [
        ([1.0, 0.0], [True, False], 0.0, 0.0),
        ([1.0, 0.0], [False, True], 1.0, 1.0),
        ([0.5] * 4, [True, False, True, False], 0.25, 0.0),
        ([0.75] * 4, [True, True, True, False], 0.1875, 0.0),
        ([0.9, 0.9, 0.1], [True, False, False], (0.01 + 0.81 + 0.01) / 3, (2 * 0.4 + 0.1) / 3),
    ],
)
def test_brier_score_and_calibration_error(probabilities, truths, brier, error):
    found = calibration.figures(probabilities, truths)
    assert found.brier == pytest.approx(brier)
    assert found.error == pytest.approx(error)
    assert sum(one.n for one in found.bins) == found.n == len(truths)


def test_yes_is_weighed_against_no_alone():
    assert calibration.yes({"Yes": 0.6, " yes": 0.1, "No": 0.1, "Maybe": 0.2}) == pytest.approx(0.875)
    assert calibration.yes({"Maybe": 1.0}) == 0.5


def test_calibration_is_told_in_json_and_markdown(capsys):
    flags = ["--tasks", "yesno", "--limit", "4", "--calibration"]
    assert main(["eval", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["calibration"]
    assert found["n"] == 4
    assert 0 <= found["brier"] <= 1
    assert main(["eval", *flags, "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == f"| 4 | {found['brier']:.4f} | {found['calibration_error']:.4f} |"


def test_a_judgement_takes_one_forward(monkeypatch):
    """As many steps as a decisions endpoint would take."""
    [question] = questions.from_tasks(["yesno"], 1, 1, 0)

    async def judged():
        async with running(DEMO_MODEL, Options(max_tokens=64, plain=False), 8) as model:
            outputs = []
            submit = model._engine.submit
            monkeypatch.setattr(model._engine, "submit", lambda them: [_noted(s, outputs) for s in submit(them)])
            return await model.judge(question), outputs

    probabilities, outputs = asyncio.run(judged())
    assert outputs[-1].usage.forwards == 1
    assert 0.5 < sum(probabilities.values()) <= 1 + 1e-6


async def _noted(stream, outputs):
    async for output in stream:
        outputs.append(output)
        yield output
