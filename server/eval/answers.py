"""What comes back for a question, and the one thing that whoever answers must be able to do."""

from dataclasses import dataclass
from typing import Protocol

from server.eval.policy import Policy
from server.eval.questions import NEXT_QUESTION, Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer and what it has cost; None where a server does not say."""

    text: str
    tokens: int | None
    forwards: int | None
    rows: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How all questions of a run are asked."""

    max_tokens: int
    plain: bool
    """As text instead of a conversation."""

    def trim(self, text: str) -> str:
        return text.partition(NEXT_QUESTION)[0] if self.plain else text


class Answerer(Protocol):
    """Safe to ask many questions at a time. Raises UnmaskError for what the user can mend."""

    async def ask(self, question: Question, policy: Policy) -> Answer: ...
