"""The answer to a question, and the interface of what answers: a local model or a server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.decisions.questions import Question as Decision
from server.eval.policy import PolicyPair
from server.eval.questions import NEXT_QUESTION, Question


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalAnswer:
    """The text that answers a question, and its cost; None if a server does not report it."""

    text: str
    tokens: int | None
    forwards: int | None
    rows: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How all questions of a run are asked."""

    max_tokens: int
    plain: bool
    """Questions are asked as text instead of a conversation."""

    def room(self, question: Question) -> int:
        """The longest answer to this question, in tokens."""
        return max(self.max_tokens, question.room)

    def trim(self, text: str) -> str:
        return text.partition(NEXT_QUESTION)[0] if self.plain else text


class Answerer(Protocol):
    """Answers questions, many at a time. Raises UnmaskError for errors that the user can fix."""

    async def ask(self, question: Question, policy: PolicyPair) -> EvalAnswer: ...

    async def judge(self, question: Question) -> Mapping[str, float]:
        """The most probable texts of the answer's first token and their probabilities, from one forward."""
        ...

    async def decide(self, decisions: Sequence[Decision]) -> Sequence[Sequence[float]]:
        """The probability of each option of each, as /v1/decisions tells them."""
        ...
