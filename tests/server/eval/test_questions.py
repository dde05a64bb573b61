"""Questions from tasks and from files: what is asked, what comes before it, and what counts as right."""

from pathlib import Path

import pytest

from engine import ConfigError, demo_problems
from server.cli import main
from server.eval import questions


def test_solved_examples_come_first_and_are_not_asked(problems):
    [sort] = questions.from_tasks(["sort"], seed=1, limit=1, few_shot=2)
    assert [turn["role"] for turn in sort.messages] == ["user", "assistant"] * 2 + ["user"]
    path = problems({"prompt": "a", "answer": "A"}, {"prompt": "b", "answer": "B"})
    [question] = questions.from_file(Path(path), limit=5, few_shot=1)
    assert question.plain == "Question: a\nAnswer: A\n\nQuestion: b\nAnswer:"
    assert question.check(" B\n")
    with pytest.raises(ConfigError, match="beside the 2 examples"):
        questions.from_file(Path(path), limit=5, few_shot=2)


def test_a_solved_example_has_all_its_turns(problems):
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "A"), ("user", "b"))]
    shot = {"messages": [{"role": "system", "content": "s"}, *turns], "answer": "B"}
    path = problems(shot, {"prompt": "c", "answer": "C"}, {"prompt": "d", "answer": "D"})
    questions_of = questions.from_file(Path(path), limit=5, few_shot=1)
    assert [[turn["content"] for turn in one.messages] for one in questions_of] == [
        ["a", "A", "b", "B", "c"],
        ["a", "A", "b", "B", "d"],
    ]


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


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "Add.", "answer": "3", "tools": [{"type": "function", "function": {"name": "add"}}]},
        {"messages": [
            {"role": "user", "content": "Add."},
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "add", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "3"},
        ], "answer": "3"},
    ],
)  # fmt: skip
def test_tools_are_never_plain_text(problems, capsys, line):
    path = problems(line)
    [question] = questions.from_file(Path(path), limit=1, few_shot=0)
    with pytest.raises(ConfigError, match="problems has tools, which need a chat template"):
        _ = question.plain
    assert main(["eval", "--plain", "--data", path]) == 2
    assert "problems has tools" in capsys.readouterr().err
