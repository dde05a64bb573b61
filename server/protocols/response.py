"""Answers on the wire: whole or in chunks, in the form of completions or of chat."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from engine import DiffusionParams, FinishReason
from server.replies.choice import Delta
from server.replies.completion import Completion
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
    ConstraintUsage,
    DiffusionUsage,
    PromptTokensDetails,
    StreamOptions,
)
from server.threads import in_thread_if_long


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What choices contain besides their text."""

    logprobs: LogprobWriter | None = None
    """None if the request did not ask for log-probabilities."""
    prompt_ids: Sequence[Sequence[int]] | None = None
    """Token ids of each choice's prompt; None leaves all token ids out of the answer."""
    stop_ids: frozenset[int] = frozenset()
    """The stop tokens that the request named: only these appear as `stop_reason`."""

    def of(self, delta: Delta) -> dict[str, Any]:
        """The fields that say why the choice ended, and its token ids if the request asked for them."""
        is_told = isinstance(delta.stop, str) or delta.stop in self.stop_ids
        extras: dict[str, Any] = {
            "finish_reason": _finish_reason(delta.finish_reason),
            "stop_reason": delta.stop if is_told else None,
        }
        if self.prompt_ids is not None:
            extras["token_ids"] = [token.id for token in delta.tokens]
        return extras

    def prompt_of(self, index: int) -> list[int] | None:
        """The token ids of this choice's prompt; None if the request did not ask for them."""
        return None if self.prompt_ids is None else list(self.prompt_ids[index])

    def num_written(self, delta: Delta, *, is_first: bool) -> int:
        """Tokens that the answer lists, as log-probabilities or as ids."""
        prompt = self.prompt_ids[delta.index] if self.prompt_ids is not None and is_first else ()
        return len(delta.tokens) + len(delta.prompt_tokens) + len(prompt)


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
        return CompletionResponse(**head, choices=choices, usage=usage)

    def chunk(
        self, head: dict[str, Any], delta: Delta | None, usage: CompletionUsage | None, *, is_first: bool
    ) -> CompletionResponse:
        choices = [self._choice(delta, is_first=is_first)] if delta else []
        return CompletionResponse(**head, choices=choices, usage=usage)

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
    prefix = "chatcmpl-"

    def whole(self, head: dict[str, Any], deltas: Sequence[Delta], usage: CompletionUsage) -> ChatResponse:
        writer = self.extras.logprobs
        choices = [
            ChatChoice(
                index=delta.index,
                message=ChatMessage(content=delta.text),
                logprobs=writer.for_chat(delta.tokens) if writer else None,
                **self.extras.of(delta),
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
        )

    def chunk(
        self, head: dict[str, Any], delta: Delta | None, usage: CompletionUsage | None, *, is_first: bool
    ) -> ChatChunk:
        writer = self.extras.logprobs
        choices = [
            ChatChunkChoice(
                index=delta.index,
                delta=ChatDelta(content=delta.text),
                logprobs=writer.for_chat(delta.tokens) if writer else None,
                **self.extras.of(delta),
            )
            for delta in (delta,)
            if delta
        ]
        return ChatChunk(**head, choices=choices, usage=usage, service_tier=self.service_tier)

    def opening(self, head: dict[str, Any], index: int, usage: CompletionUsage | None) -> ChatChunk:
        choice = ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))
        ids = None if index else self.extras.prompt_of(0)
        return ChatChunk(**head, choices=[choice], service_tier=self.service_tier, prompt_token_ids=ids, usage=usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseWriter:
    """Writes one answer as JSON, whole or in chunks, with the fields that all of its parts share."""

    form: Form
    model: str
    fingerprint: str
    """The server's fingerprint, from `server.protocols.service`."""
    diffusion: DiffusionParams
    """The parameters that the answer is decoded with, the server's defaults included."""
    constraint: ConstraintUsage | None = None
    key: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        return self.form.prefix + self.key

    async def whole(self, completion: Completion) -> str:
        deltas = await completion.fold()
        usage = self._usage(completion)
        size = sum(self.form.extras.num_written(delta, is_first=True) for delta in deltas)
        return await in_thread_if_long(size, lambda: self.form.whole(self._head, deltas, usage).model_dump_json())

    async def chunks(self, completion: Completion, options: StreamOptions) -> AsyncIterator[str]:
        """The openings of the choices, then one chunk for each completed block; `usage` as the options ask for it."""
        hidden = None if options.include_usage else {"usage"}
        is_running = options.include_usage and options.continuous_usage_stats
        for index in range(completion.num_choices):
            running = self._usage(completion) if is_running else None
            if opening := self.form.opening(self._head, index, running):
                yield opening.model_dump_json(exclude=hidden)
        begun: set[int] = set()
        async for delta in completion.deltas():
            running = self._usage(completion) if is_running else None
            is_first = delta.index not in begun
            begun.add(delta.index)
            size = self.form.extras.num_written(delta, is_first=is_first)
            yield await in_thread_if_long(size, partial(self._chunk, delta, running, is_first, hidden))
        if options.include_usage:
            yield self.form.chunk(self._head, None, self._usage(completion), is_first=False).model_dump_json()

    def _chunk(self, delta: Delta, usage: CompletionUsage | None, is_first: bool, hidden: set[str] | None) -> str:
        return self.form.chunk(self._head, delta, usage, is_first=is_first).model_dump_json(exclude=hidden)

    @property
    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model, "system_fingerprint": self.fingerprint}

    def _usage(self, completion: Completion) -> CompletionUsage:
        usage = completion.usage
        return CompletionUsage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
            diffusion=DiffusionUsage(
                cache=self.diffusion.cache,
                unmask=self.diffusion.unmask,
                lookahead=self.diffusion.lookahead,
                forwards=usage.forwards,
                rows_computed=usage.rows_computed,
                visible_tokens=usage.visible_tokens,
                tokens_per_forward=usage.tokens_per_forward,
                constraint=self.constraint,
                fills=completion.fills,
            ),
        )


def _finish_reason(reason: FinishReason | None) -> Literal["stop", "length"] | None:
    match reason:
        case None:
            return None
        case FinishReason.LENGTH:
            return "length"
        case _:
            return "stop"
