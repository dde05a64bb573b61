"""The questions: a prompt in two forms, and the check of its answer. From the demo's tasks or a JSONL file.

Knows no model and no tokenizer: messages are rendered elsewhere.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import DEMO_TASKS, ConfigError, DemoProblem, demo_problems

ChatTurn = Mapping[str, str]

NEXT_QUESTION = "\nQuestion:"
"""A plain answer is cut here, because models without tuning continue with another question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A problem as it is asked: one prompt, and what its answer must satisfy."""

    task: str
    messages: tuple[ChatTurn, ...]
    """The conversation, solved examples included; the last turn is the user's."""
    check: Callable[[str], bool]

    @property
    def plain(self) -> str:
        """The conversation as text, in the form of the few-shot literature."""
        turns = [f"{'Answer:' if turn['role'] == 'assistant' else 'Question:'} {turn['content']}" for turn in self._qa]
        lines = [turn + ("\n\n" if turn.startswith("Answer:") else "\n") for turn in turns]
        return "".join([*self._system, *lines, "Answer:"])

    @property
    def _qa(self) -> Iterator[ChatTurn]:
        return (turn for turn in self.messages if turn["role"] != "system")

    @property
    def _system(self) -> Iterator[str]:
        return (f"{turn['content']}\n\n" for turn in self.messages if turn["role"] == "system")


def from_tasks(tasks: Sequence[str], seed: int, limit: int, few_shot: int) -> list[Question]:
    """`limit` held-out problems of each demo task. The `few_shot` solved examples are training problems."""
    questions = []
    for task in tasks:
        solved = _examples(demo_problems(task, seed, few_shot, "train"))
        questions += [_question(problem, solved) for problem in demo_problems(task, seed, limit)]
    return questions


def from_file(path: Path, limit: int, few_shot: int) -> list[Question]:
    """Up to `limit` questions from lines of {"prompt" or "messages", "answer"}.

    The first `few_shot` lines are solved examples and are not asked. A line's "task" is the row that it counts for, by
    default the file's name. Raises ConfigError with the number of the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    questions: list[Question] = []
    solved: list[ChatTurn] = []
    for number, line in numbered[: few_shot + limit]:
        where = f"{path}, line {number}"
        fields = _fields(line, where)
        task, messages, answer = str(fields.get("task", path.stem)), _messages(fields, where), fields["answer"]
        if len(solved) < 2 * few_shot:
            solved += [messages[-1], {"role": "assistant", "content": answer}]
            continue
        check = _exactly(answer)
        if "names" in fields and "things" in fields:  # a story, which has many right answers
            check = _problem(task, fields, where).check
        *before, last = messages
        questions.append(Question(task=task, messages=(*before, *solved, last), check=check))
    if not questions:
        raise ConfigError(f"{path} holds no problems" + (f" beside the {few_shot} examples" if few_shot else ""))
    return questions


def export(path: Path, tasks: Sequence[str], seed: int, limit: int) -> int:
    """Writes the problems of `from_tasks` as JSONL, which `from_file` and lm-eval read. Returns their number.

    Raises ConfigError if the file cannot be written.
    """
    problems = [problem for task in tasks for problem in demo_problems(task, seed, limit)]
    try:
        path.write_text("".join(f"{json.dumps(_line(problem))}\n" for problem in problems), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    return len(problems)


def choose_tasks(names: Sequence[str]) -> list[str]:
    """The tasks with these names, or all for `all`. Raises ConfigError for an unknown name."""
    for name in names:
        if name not in DEMO_TASKS and name != "all":
            raise ConfigError(f"{name!r} is no task; choose among all, {', '.join(DEMO_TASKS)}")
    return [task for task in DEMO_TASKS if task in names or "all" in names]


def _question(problem: DemoProblem, solved: Sequence[ChatTurn]) -> Question:
    turn = {"role": "user", "content": problem.prompt}
    return Question(task=problem.task, messages=(*solved, turn), check=problem.check)


def _examples(problems: Sequence[DemoProblem]) -> list[ChatTurn]:
    pairs = ((("user", problem.prompt), ("assistant", problem.answer)) for problem in problems)
    return [{"role": role, "content": content} for pair in pairs for role, content in pair]


def _line(problem: DemoProblem) -> dict[str, object]:
    line: dict[str, object] = {"task": problem.task, "prompt": problem.prompt, "answer": problem.answer}
    return line | ({"names": problem.names, "things": problem.things} if problem.names else {})


def _fields(line: str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{where} must be a JSON object")
    if not isinstance(fields.get("answer"), str):
        raise ConfigError(f"{where} needs an `answer` that is a string")
    return fields


def _messages(fields: Mapping[str, Any], where: str) -> list[ChatTurn]:
    match fields:
        case {"prompt": str(prompt)} if "messages" not in fields:
            return [{"role": "user", "content": prompt}]
        case {"messages": [*turns]} if "prompt" not in fields and turns and all(map(_is_turn, turns)):
            if turns[-1]["role"] == "user":
                return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    raise ConfigError(
        f"{where} needs either a `prompt` that is a string, or `messages` of `role` and `content`, the user's last"
    )


def _is_turn(turn: object) -> bool:
    match turn:
        case {"role": "system" | "user" | "assistant", "content": str()}:
            return True
    return False


def _problem(task: str, fields: Mapping[str, Any], where: str) -> DemoProblem:
    names, things = fields["names"], fields["things"]
    for words in (names, things):
        if not (isinstance(words, list) and words and all(isinstance(word, str) for word in words)):
            raise ConfigError(f"{where}: `names` and `things` must be lists of strings")
    return DemoProblem(task=task, prompt="", answer=fields["answer"], names=tuple(names), things=tuple(things))


def _exactly(answer: str) -> Callable[[str], bool]:
    return lambda text: text.strip() == answer.strip()
