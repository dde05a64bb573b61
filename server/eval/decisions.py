"""How good a model's decisions are, by the path of /v1/decisions: accuracy, Brier score and calibration of each task.

A question is a decision if it is answered by yes or no, by the letter of an option, or by a number from 1 on: what it
says of these is told apart from what it asks, which is then asked as any client's. The Brier score (1950) is the sum
over options of (probability - truth)^2, halved, so that of two options it is that of one. The calibration error is the
expected one of the chosen option's probability (`server.eval.calibration`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from string import ascii_uppercase
from typing import Literal

from engine import ConfigError
from server.decisions.labels import MOST_LEVELS
from server.decisions.questions import Option, predicate
from server.decisions.questions import Question as Decision
from server.eval.answerers.answers import Answerer
from server.eval.calibration import figures
from server.eval.questions import Question

_HOW = re.compile(
    r"\s*(?:Yes or no\?|Answer (?:with )?yes or no\.|Answer with (?:a|the) letter\.|Which letter is right\?"
    r"|(?:Answer|Score|Give a score|Answer with a number) from 1 to ([0-9]{1,2})\.)\s*$"
)
"""How to answer, at a question's end."""
_OPTION = re.compile(r"\s([A-Z])(?:: |\) |\. )")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """The figures of one task."""

    task: str
    n: int
    accuracy: float
    """The share of questions whose most probable answer is the right one."""
    brier: float
    """From 0 (right and certain) to 1."""
    calibration_error: float
    """From 0 to 1."""
    confidence: float
    """The mean probability of the chosen answers."""


async def decided(answerer: Answerer, questions: Sequence[Question]) -> list[DecisionRow]:
    """A row for each task. Raises ConfigError for a question that is no decision, and what the answerer raises."""
    rows = []
    for task in dict.fromkeys(question.task for question in questions):
        judged = [as_decision(question) for question in questions if question.task == task]
        found = await answerer.decide([decision for decision, _ in judged])
        rows.append(_row(task, found, [truth for _, truth in judged]))
    return rows


def as_decision(question: Question) -> tuple[Decision, int]:
    """The question and the number of its right option. Raises ConfigError if there is no telling."""
    text = question.messages[-1]["content"] if len(question.messages) == 1 else ""
    how = _HOW.search(text)
    asked = text[: how.start()] if how else text
    first, *rest = _OPTION.split(asked)
    labels, options = rest[::2], rest[1::2]
    decision, answers = None, labels
    if question.choices:
        decision, answers = _of("choice", text, question.choices), [*question.choices]
    elif text and question.is_yes is not None:
        return predicate(asked), 0 if question.is_yes else 1
    elif how and how[1] and 2 <= int(how[1]) <= MOST_LEVELS:
        answers = [str(number) for number in range(1, int(how[1]) + 1)]
        decision = _of("score", asked, answers)
    elif len(labels) > 1 and ascii_uppercase.startswith("".join(labels)):
        decision = _of("choice", first, [option.strip() for option in options])
    right = [number for number, answer in enumerate(answers) if question.check(answer)]
    if not text or decision is None or len(right) != 1:
        raise ConfigError(
            "--decisions is for questions of one message that are answered by Yes or No, by the letter of an option, "
            "by a number from 1 on, or by one of `choices`, such as --tasks yesno,choice,score; not for "
            f"{question.task}"
        )
    return decision, right[0]


def _of(kind: Literal["choice", "score"], instructions: str, options: Sequence[str]) -> Decision:
    return Decision(kind=kind, instructions=instructions, options=tuple(Option(text=option) for option in options))


def _row(task: str, found: Sequence[Sequence[float]], truths: Sequence[int]) -> DecisionRow:
    chosen = [probabilities.index(max(probabilities)) for probabilities in found]
    is_right = [choice == truth for choice, truth in zip(chosen, truths, strict=True)]
    highest = [max(probabilities) for probabilities in found]
    return DecisionRow(
        task=task,
        n=len(truths),
        accuracy=fmean(is_right),
        brier=fmean(map(_brier, found, truths)),
        calibration_error=figures(highest, is_right).calibration_error,
        confidence=fmean(highest),
    )


def _brier(probabilities: Sequence[float], truth: int) -> float:
    return sum((one - (number == truth)) ** 2 for number, one in enumerate(probabilities)) / 2
