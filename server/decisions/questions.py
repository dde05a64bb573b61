"""Questions and how the model is asked them: in words, each answer by a label of one token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.decisions.labels import Label, Labels

YES_NO = ("Yes", "No")
"""The answers to a predicate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One of the answers that a question allows."""

    text: str
    description: str | None = None

    @property
    def told(self) -> str:
        return f"{self.text} ({self.description})" if self.description else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be judged about an input."""

    kind: Literal["predicate", "choice", "score"]
    instructions: str
    options: tuple[Option, ...]
    """Of a score from the lowest level to the highest; of a predicate yes, then no."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as the model reads it."""

    text: str
    labels: Sequence[Label]
    """What stands for each option."""


def predicate(instructions: str) -> Question:
    """Whether something is so."""
    return Question(kind="predicate", instructions=instructions, options=tuple(Option(text=one) for one in YES_NO))


def asked(question: Question, labels: Labels) -> Asked | None:
    """The question in words; None if this model's tokenizer has too few labels for its options."""
    count, scale = len(question.options), labels.numbers[: len(question.options)]
    if question.kind == "predicate" and labels.yes_no:
        return Asked(f"{question.instructions} Answer yes or no.", labels.yes_no)
    if question.kind == "score" and len(scale) == count:
        is_scale = [option.told for option in question.options] == [label.text for label in scale]
        listed = " " if is_scale else _listed(question.options, scale)
        return Asked(f"{question.instructions}{listed}Answer from 1 to {count}.", scale)
    named = labels.names[:count]
    if len(named) < count:
        return None
    noun = "letter" if all(len(label.text) == 1 for label in named) else "label"
    return Asked(f"{question.instructions}{_listed(question.options, named)}Answer with the {noun}.", named)


def _listed(options: Sequence[Option], labels: Sequence[Label]) -> str:
    """A line for each option, before and behind which there is other text."""
    lines = (f"{label.text}: {option.told}" for label, option in zip(labels, options, strict=True))
    return "".join(f"\n{line}" for line in lines) + "\n"
