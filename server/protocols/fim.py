"""`/v1/fim/completions` in the form of Mistral and of Inception's Mercury: a completion between `prompt` and `suffix`.

Its answers are those of /v1/completions, with the text as a message, or as the delta of one, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from server.protocols.forms import TextForm
from server.replies.choice import Delta
from server.schemas import CompletionChoice, CompletionRequest, CompletionResponse, CompletionUsage, TraceStep
from server.schemas.sampling import Seed
from server.schemas.wire import IfGiven


class FimRequest(CompletionRequest):
    """Body of POST /v1/fim/completions."""

    random_seed: Seed = None
    """Mistral's name of `seed`, which wins."""

    @property
    def with_seed(self) -> "FimRequest":
        """With `random_seed` as `seed`, where only this is given."""
        return self if self.seed is not None else self.model_copy(update={"seed": self.random_seed})


class FimMessage(BaseModel):
    """The text as a message, or a piece of one."""

    role: Literal["assistant"] = "assistant"
    content: str


class FimChoice(CompletionChoice):
    """One answer, or what a block adds to it."""

    message: IfGiven[FimMessage] = None
    """Of a whole answer."""
    delta: IfGiven[FimMessage] = None
    """Of a chunk."""


class FimResponse(CompletionResponse):
    """A whole answer, or one chunk of a streamed one."""

    object: Literal["chat.completion", "chat.completion.chunk"]  # type: ignore[assignment]
    choices: list[FimChoice]  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class FimForm(TextForm):
    """Completions whose choices are messages too."""

    prefix = "fim-"

    def whole(self, head: dict[str, Any], deltas: Sequence[Delta], usage: CompletionUsage) -> FimResponse:
        answer = TextForm.whole(self, head, deltas, usage)
        return _with_messages(answer, "message", "chat.completion")

    def chunk(
        self, head: dict[str, Any], delta: Delta | None, usage: CompletionUsage | None, *, is_first: bool
    ) -> FimResponse:
        answer = TextForm.chunk(self, head, delta, usage, is_first=is_first)
        return _with_messages(answer, "delta", "chat.completion.chunk")

    def traced(self, head: dict[str, Any], step: TraceStep) -> FimResponse:
        return _with_messages(TextForm.traced(self, head, step), "delta", "chat.completion.chunk")


def _with_messages(answer: CompletionResponse, field: str, kind: str) -> FimResponse:
    choices = [FimChoice(**{**dict(choice), field: FimMessage(content=choice.text)}) for choice in answer.choices]
    return FimResponse(**{**dict(answer), "object": kind, "choices": choices})
