"""`unmask eval --decisions`: what a question asks, the figures by hand, the command with a model and with a server."""

import json
from pathlib import Path

import pytest

from engine import ConfigError
from server.cli import main
from server.eval import questions
from server.eval.decisions import as_decision, decided


def asked(prompt, answer, **more):
    return questions.Question(
        task="t", messages=({"role": "user", "content": prompt},), check=lambda text: text == answer, **more
    )


@pytest.mark.parametrize(
    ("question", "kind", "instructions", "options", "truth"),
    [
        (asked("It is red. Is it? Yes or no?", "No", is_yes=False), "predicate", "It is red. Is it?", "Yes No", 1),
        (asked("Is it?", "Yes", is_yes=True), "predicate", "Is it?", "Yes No", 0),
        (asked("Which? A) red B) sky blue Answer with a letter.", "B"), "choice", "Which?", "red sky_blue", 1),
        (asked("Which?\nA: red\nB: blue\nC: 7", "C"), "choice", "Which?", "red blue 7", 2),
        (asked("How? Give a score from 1 to 3.", "2"), "score", "How?", "1 2 3", 1),
        (asked("Which way?", "left", choices=("right", "left")), "choice", "Which way?", "right left", 1),
    ],
)
def test_what_is_asked(question, kind, instructions, options, truth):
    decision, right = as_decision(question)
    assert (decision.kind, decision.instructions) == (kind, instructions)
    assert [option.text.replace(" ", "_") for option in decision.options] == options.split()
    assert right == truth


def test_the_bundled_tasks_are_decisions():
    for question in questions.from_tasks(["yesno", "choice", "score"], 1, 60, 0):
        decision, truth = as_decision(question)
        assert 0 <= truth < len(decision.options)
        assert "nswer" not in decision.instructions


@pytest.mark.parametrize("prompt", ["What is 1 + 1?", "Which? A: one", "How? Answer from 1 to 99."])
def test_others_are_refused(prompt):
    with pytest.raises(ConfigError, match="--decisions is for"):
        as_decision(asked(prompt, "2"))


@pytest.mark.parametrize("task", ["yesno", "choice", "score"])
def test_solved_examples_are_refused(task):
    """A decision has no place for them."""
    [question] = questions.from_tasks([task], 1, 1, 2)
    with pytest.raises(ConfigError, match="of one message"):
        as_decision(question)


async def test_the_figures_by_hand():
    class Answerer:
        async def decide(self, decisions):
            return [[0.7, 0.3], [0.6, 0.4], [0.1, 0.9]]

    [row] = await decided(Answerer(), [asked("Is it?", "Yes", is_yes=is_yes) for is_yes in (True, False, False)])
    assert (row.task, row.n) == ("t", 3)
    assert row.accuracy == pytest.approx(2 / 3)
    assert row.brier == pytest.approx((0.3**2 + 0.6**2 + 0.1**2) / 3)
    assert row.confidence == pytest.approx((0.7 + 0.6 + 0.9) / 3)
    assert row.calibration_error == pytest.approx((0.3 + 0.6 + 0.1) / 3)


@pytest.mark.slow
def test_a_model_and_its_server_say_the_same(capsys, demo_server):
    flags = ["eval", "--tasks", "yesno,choice,score", "--limit", "6", "--decisions", "--json"]
    assert main(flags) == 0
    local = json.loads(capsys.readouterr().out)["decisions"]
    assert [row["task"] for row in local] == ["yesno", "choice", "score"]
    assert main([*flags, "--base-url", demo_server]) == 0
    for one, other in zip(local, json.loads(capsys.readouterr().out)["decisions"], strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_file_with_choices(capsys, problems):
    path = problems({"prompt": "Which way?", "answer": "left", "choices": ["right", "left"], "task": "ways"})
    assert main(["eval", "--data", path, "--decisions", "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| ways | 1 |")


@pytest.mark.parametrize("choices", ["left", ["left"], ["left", "left"], ["right", "up"], [1, 2]])
def test_choices_that_make_no_sense(problems, choices):
    path = problems({"prompt": "Which way?", "answer": "left", "choices": choices})
    with pytest.raises(ConfigError, match="choices"):
        questions.from_file(Path(path), 1, 0)
