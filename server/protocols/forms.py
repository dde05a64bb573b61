"""Answers on the wire: whole or in chunks, in the form of completions or of chat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from engine import FinishReason
from server.protocols.tool_calls import call_deltas, called
from server.protocols.trace import TraceWriter
from server.replies.choice import Delta
from server.replies.logprobs import LogprobWriter
from server.schemas import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatMessage,
    ChatResponse,
    CompletionChoice,
    CompletionResponse,
    CompletionUsage,
    TraceStep,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What choices contain besides their text."""

    logprobs: LogprobWriter | None = None
    """None if the request did not ask for log-probabilities."""
    prompt_ids: Sequence[Sequence[int]] | None = None
    """Token ids of each choice's prompt; None leaves all token ids out of the answer."""
    stop_ids: frozenset[int] = frozenset()
    """The stop tokens that the request named: only these appear as `stop_reason`."""
    has_step_map: bool = False
    """The request asked for the step of each token."""
    trace: TraceWriter | None = None
    """None if the request did not ask for its steps."""

    @property
    def lists_tokens(self) -> bool:
        """Whether choices list their tokens besides the text, or tell where these stand."""
        return self.prompt_ids is not None or self.has_step_map or self.trace is not None

    def of(self, delta: Delta) -> dict[str, Any]:
        """The fields that say why the choice ended, and what the request asked for of its tokens."""
        is_told = isinstance(delta.stop, str) or delta.stop in self.stop_ids
        extras: dict[str, Any] = {
            "finish_reason": _finish_reason(delta.finish_reason),
            "stop_reason": delta.stop if is_told else None,
        }
        if self.prompt_ids is not None:
            extras["token_ids"] = [token.id for token in delta.tokens]
        if self.has_step_map:
            extras["step_map"] = [token.step for token in delta.tokens]
        if self.trace is not None and delta.finish_reason is not None:
            extras["shown"] = delta.shown
        return extras

    def trace_of(self, deltas: Sequence[Delta]) -> list[TraceStep] | None:
        """The steps of these choices; None if the request did not ask for them."""
        if self.trace is None:
            return None
        return [self.trace.written(delta.index, step, delta.prompt_ids) for delta in deltas for step in delta.traced]

    def prompt_of(self, index: int) -> list[int] | None:
        """The token ids of this choice's prompt; None if the request did not ask for them."""
        return None if self.prompt_ids is None else list(self.prompt_ids[index])

    def num_written(self, delta: Delta, *, is_first: bool) -> int:
        """Tokens that the answer lists: as log-probabilities, as ids, or in steps."""
        prompt = self.prompt_ids[delta.index] if self.prompt_ids is not None and is_first else ()
        watched = sum(len(step.positions) + (len(delta.prompt_ids) if step.canvas else 0) for step in delta.traced)
        return len(delta.tokens) + len(delta.prompt_tokens) + len(prompt) + watched


class Form(Protocol):
    """The form of one route's answers. `head`: the fields that all parts of an answer share, such as id and model."""

    prefix: str
    """Prefix of the ids of answers."""

    @property
    def extras(self) -> Extras: ...

    def whole(self, head: dict[str, Any], deltas: Sequence[Delta], usage: CompletionUsage) -> BaseModel: ...

    def chunk(
        self, head: dict[str, Any], delta: Delta | None, usage: CompletionUsage | None, *, is_first: bool
    ) -> BaseModel: ...

    def traced(self, head: dict[str, Any], step: TraceStep) -> BaseModel:
        """A chunk without choices, whose event has a name of its own."""
        ...

    def opening(self, head: dict[str, Any], index: int, usage: CompletionUsage | None) -> BaseModel | None:
        """The chunk that opens a choice before anything is decoded; None if the form has none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextForm:
    """/v1/completions: whole answers and chunks have the same type."""

    extras: Extras
    prefix = "cmpl-"

    def whole(self, head: dict[str, Any], deltas: Sequence[Delta], usage: CompletionUsage) -> CompletionResponse:
        choices = [self._choice(delta, is_first=True) for delta in deltas]
        return CompletionResponse(**head, choices=choices, usage=usage, trace=self.extras.trace_of(deltas))

    def chunk(
        self, head: dict[str, Any], delta: Delta | None, usage: CompletionUsage | None, *, is_first: bool
    ) -> CompletionResponse:
        choices = [self._choice(delta, is_first=is_first)] if delta else []
        return CompletionResponse(**head, choices=choices, usage=usage)

    def traced(self, head: dict[str, Any], step: TraceStep) -> CompletionResponse:
        return CompletionResponse(**head, choices=[], trace=step)

    def opening(self, head: dict[str, Any], index: int, usage: CompletionUsage | None) -> None:
        return None

    def _choice(self, delta: Delta, *, is_first: bool) -> CompletionChoice:
        writer = self.extras.logprobs
        return CompletionChoice(
            index=delta.index,
            text=delta.text,
            logprobs=writer.for_completion([*delta.prompt_tokens, *delta.tokens]) if writer else None,
            prompt_token_ids=self.extras.prompt_of(delta.index) if is_first else None,
            **self.extras.of(delta),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatForm:
    """/v1/chat/completions: a message, or the deltas of one after its role. There is one prompt for all choices."""

    extras: Extras
    service_tier: str | None = None
    """The request's, repeated in the answer."""
    metadata: dict[str, str] | None = None
    """The request's, repeated in whole answers only."""
    has_tools: bool = False
    """Tools may be called: content is null beside calls, and left out of chunks without text."""
    shows_reasoning: bool = True
    """Reasoning that is told apart is part of the answer."""
    is_named: bool = False
    """The one tool to call is the request's choice, so that a call is what ends the answer as any other (`stop`)."""
    prefix = "chatcmpl-"

    def whole(self, head: dict[str, Any], deltas: Sequence[Delta], usage: CompletionUsage) -> ChatResponse:
        writer = self.extras.logprobs
        choices = [
            ChatChoice(
                index=delta.index,
                message=ChatMessage(
                    content=self._content(delta),
                    reasoning_content=self._reasoning(delta),
                    tool_calls=called(head["id"], delta) or None,
                ),
                logprobs=writer.for_chat(delta.content_tokens) if writer else None,
                **self._end(delta),
            )
            for delta in deltas
        ]
        return ChatResponse(
            **head,
            choices=choices,
            usage=usage,
            service_tier=self.service_tier,
            metadata=self.metadata,
            prompt_token_ids=self.extras.prompt_of(0),
            trace=self.extras.trace_of(deltas),
        )

    def chunk(
        self, head: dict[str, Any], delta: Delta | None, usage: CompletionUsage | None, *, is_first: bool
    ) -> ChatChunk:
        choices = [self._choice(head["id"], delta)] if delta else []
        return ChatChunk(**head, choices=choices, usage=usage, service_tier=self.service_tier)

    def traced(self, head: dict[str, Any], step: TraceStep) -> ChatChunk:
        return ChatChunk(**head, choices=[], service_tier=self.service_tier, trace=step)

    def opening(self, head: dict[str, Any], index: int, usage: CompletionUsage | None) -> ChatChunk:
        content = None if self.has_tools else ""
        choice = ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=content))
        ids = None if index else self.extras.prompt_of(0)
        return ChatChunk(**head, choices=[choice], service_tier=self.service_tier, prompt_token_ids=ids, usage=usage)

    def _choice(self, answer: str, delta: Delta) -> ChatChunkChoice:
        """`answer`: its id."""
        writer = self.extras.logprobs
        return ChatChunkChoice(
            index=delta.index,
            delta=ChatDelta(
                content=self._content(delta),
                reasoning_content=self._reasoning(delta),
                tool_calls=call_deltas(answer, delta) or None,
            ),
            logprobs=writer.for_chat(delta.content_tokens) if writer else None,
            **self._end(delta),
        )

    def _content(self, delta: Delta) -> str | None:
        """null only beside calls, or as long as these may come."""
        may_be_null = self.has_tools and (delta.num_calls > 0 or delta.finish_reason is None)
        return delta.text or (None if may_be_null else "")

    def _reasoning(self, delta: Delta) -> str | None:
        return (delta.reasoning or None) if self.shows_reasoning else None

    def _end(self, delta: Delta) -> dict[str, Any]:
        """`Extras.of`, where whole calls are an end of their own: clients run these."""
        told = self.extras.of(delta)
        has_whole_calls = delta.num_calls > 0 and not delta.is_amid_call
        if has_whole_calls and not self.is_named and told["finish_reason"] == "stop":
            told["finish_reason"] = "tool_calls"
        return told


def _finish_reason(reason: FinishReason | None) -> Literal["stop", "length"] | None:
    match reason:
        case None:
            return None
        case FinishReason.LENGTH:
            return "length"
        case _:
            return "stop"
