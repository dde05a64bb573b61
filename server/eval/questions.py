"""The questions: a prompt in two forms, and the check of its answer. From the demo's tasks or a JSONL file.

Knows no model and no tokenizer: messages are rendered elsewhere.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine import BASIC_TASKS, DEMO_TASKS, ConfigError, DemoProblem, demo_problems, demo_solved

ChatTurn = Mapping[str, Any]

GROUPS: Mapping[str, Sequence[str]] = {"all": tuple(DEMO_TASKS), "basic": BASIC_TASKS}
"""Names that stand for several tasks."""
TOOLS = "tool"
"""The task whose questions come with tools."""
LONG_STORY = 128
"""Tokens that a long story takes at most."""
_TURN = ("role", "content", "tool_calls", "tool_call_id")
NEXT_QUESTION = "\nQuestion:"
"""A plain answer is cut here, because models without tuning continue with another question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A problem as it is asked: one prompt, and what its answer must satisfy."""

    task: str
    messages: tuple[ChatTurn, ...]
    """The conversation, solved examples included; the last turn is the user's or a tool's."""
    check: Callable[[str], bool]
    tools: tuple[Mapping[str, Any], ...] = ()
    """The functions that may be called, as OpenAI's `tools`."""
    schema: Mapping[str, Any] | None = None
    """The JSON Schema that the answer must fit; None of an answer that need not be JSON."""
    is_yes: bool | None = None
    """Of a question that is answered by `Yes` or `No`: the truth."""
    choices: tuple[str, ...] = ()
    """The answers that there are, of a question from a file that tells them."""
    room: int = 0
    """The most tokens that an answer takes; a longer `--max-tokens` counts."""

    @property
    def plain(self) -> str:
        """The conversation as text, in the form of the few-shot literature.

        Raises ConfigError if there are tools: that form has no place for them.
        """
        if self.tools or any(turn["role"] == "tool" or turn.get("tool_calls") for turn in self.messages):
            raise ConfigError(f"{self.task} has tools, which need a chat template: not as plain text")
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
    return [
        _asked(problem, problem.messages(demo_solved(problem, seed, few_shot)))
        for task in tasks
        for problem in demo_problems(task, seed, limit)
    ]


def from_file(path: Path, limit: int, few_shot: int) -> list[Question]:
    """Up to `limit` questions from lines of {"prompt" or "messages", "answer"}.

    The first `few_shot` lines are solved examples, with all their turns but the system's, and are not asked. A line's
    "task" is the row that it counts for, by default the file's name. Raises ConfigError with the number of the line.
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
    for place, (number, line) in enumerate(numbered[: few_shot + limit]):
        where = f"{path}, line {number}"
        fields = _fields(line, where)
        task, messages, answer = str(fields.get("task", path.stem)), _messages(fields, where), fields["answer"]
        if place < few_shot:
            solved += (turn for turn in messages if turn["role"] != "system")
            solved.append({"role": "assistant", "content": answer})
            continue
        problem = _problem(task, fields, where)
        *before, last = messages
        question = _asked(problem, [*before, *solved, last])
        questions.append(replace(question, choices=_choices(fields, where)))
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


def choose_tasks(names: Sequence[str], *, plain: bool = False) -> list[str]:
    """The tasks with these names, all for `all` and the first five for `basic`; as `plain` text none with tools.

    Raises ConfigError for an unknown name.
    """
    chosen = {task for name in names for task in GROUPS.get(name, (name,))}
    for name in names:
        if plain and name == TOOLS:
            raise ConfigError(f"{name} needs the chat template, which --plain leaves out")
        if name not in DEMO_TASKS and name not in GROUPS:
            raise ConfigError(f"{name!r} is no task; choose among {', '.join((*GROUPS, *DEMO_TASKS))}")
    return [task for task in DEMO_TASKS if task in chosen and not (plain and task == TOOLS)]


def _asked(problem: DemoProblem, messages: Sequence[ChatTurn]) -> Question:
    return Question(
        task=problem.task,
        messages=tuple(messages),
        check=problem.check,
        tools=tuple(json.loads(tool) for tool in problem.tools),
        schema=json.loads(problem.schema) if problem.schema else None,
        is_yes={"Yes": True, "No": False}.get(problem.answer.strip()),
        room=LONG_STORY if problem.story == "long" else 0,
    )


def _line(problem: DemoProblem) -> dict[str, object]:
    """All that a file needs to ask the problem again; fields with nothing in them are left out."""
    messages = problem.messages()
    *before, last = messages
    asked = {"messages": messages} if before or last["role"] != "user" else {"prompt": problem.prompt}
    more = {
        "names": problem.names,
        "things": problem.things,
        "story": problem.story,
        "yes": problem.yes,
        "schema": json.loads(problem.schema) if problem.schema else None,
        "tools": [json.loads(tool) for tool in problem.tools],
    }
    line = {"task": problem.task, **asked, "answer": problem.answer}
    return line | {name: value for name, value in more.items() if value or value == 0.0}


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
            if turns[-1]["role"] in ("user", "tool"):
                return [{name: turn[name] for name in _TURN if name in turn} for turn in turns]
    raise ConfigError(
        f"{where} needs either a `prompt` that is a string, or `messages` of `role` and `content`, the last the "
        "user's or a tool's"
    )


def _choices(fields: Mapping[str, Any], where: str) -> tuple[str, ...]:
    choices = fields.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        raise ConfigError(f"{where}: `choices` must be a list of strings")
    if choices and (len(set(choices)) < max(len(choices), 2) or fields["answer"] not in choices):
        raise ConfigError(f"{where}: `choices` must be two or more, each once, with the `answer` among them")
    return tuple(choices)


def _is_turn(turn: object) -> bool:
    match turn:
        case {"role": "system" | "user" | "assistant" | "tool", "content": str()}:
            return True
        case {"role": "assistant", "tool_calls": [*calls]} if calls and all(map(_is_call, calls)):
            return True
    return False


def _is_call(call: object) -> bool:
    match call:
        case {"function": {"name": str(), "arguments": str()}}:
            return True
    return False


def _problem(task: str, fields: Mapping[str, Any], where: str) -> DemoProblem:
    """What the fields beside the prompt say of the answer. Raises ConfigError."""
    names, things, story = fields.get("names", []), fields.get("things", []), fields.get("story", "")
    for words in (names, things):
        if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise ConfigError(f"{where}: `names` and `things` must be lists of strings")
    if story not in ("", "short", "long"):
        raise ConfigError(f"{where}: `story` must be `short` or `long`")
    yes = fields.get("yes")
    if yes is not None and not (isinstance(yes, int | float) and 0 <= yes <= 1):
        raise ConfigError(f"{where}: `yes` must be a probability")
    schema, tools = fields.get("schema"), fields.get("tools", [])
    if not isinstance(schema, dict | None):
        raise ConfigError(f"{where}: `schema` must be an object")
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ConfigError(f"{where}: `tools` must be a list of objects")
    return DemoProblem(
        task=task,
        prompt="",
        answer=fields["answer"].strip(),
        names=tuple(names),
        things=tuple(things),
        story=story or ("short" if names and things else ""),
        yes=yes,
        schema=json.dumps(schema) if schema else "",
        tools=tuple(map(json.dumps, tools)),
    )
