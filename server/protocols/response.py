"""Writes answers as JSON, whole or in chunks, in one of the `server.protocols.forms`."""

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from engine import DiffusionParams
from server.protocols.forms import Form
from server.replies.choice import Delta
from server.replies.completion import Completion
from server.schemas import (
    CompletionTokensDetails,
    CompletionUsage,
    ConstraintUsage,
    DiffusionUsage,
    PromptTokensDetails,
    StreamOptions,
)
from server.threads import in_thread_if_long

STEP = "unmask.step"
"""The name of events that tell a step."""


class Event(NamedTuple):
    """A message of a stream that is no chunk of the answer: clients that do not know its name may pass over it."""

    name: str
    data: str


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

    async def chunks(self, completion: Completion, options: StreamOptions) -> AsyncIterator[str | Event]:
        """The openings of the choices, then one chunk for each completed block; `usage` as the options ask for it.

        The steps of an answer that is watched are events of their own.
        """
        hidden = None if options.include_usage else {"usage"}
        is_running = options.include_usage and options.continuous_usage_stats
        for index in range(completion.num_choices):
            running = self._usage(completion) if is_running else None
            if opening := self.form.opening(self._head, index, running):
                yield opening.model_dump_json(exclude=hidden)
        begun: set[int] = set()
        async for delta in completion.deltas():
            if delta.traced:
                yield await in_thread_if_long(
                    self.form.extras.num_written(delta, is_first=False), partial(self._step, delta)
                )
                continue
            running = self._usage(completion) if is_running else None
            is_first = delta.index not in begun
            begun.add(delta.index)
            size = self.form.extras.num_written(delta, is_first=is_first)
            yield await in_thread_if_long(size, partial(self._chunk, delta, running, is_first, hidden))
        if options.include_usage:
            yield self.form.chunk(self._head, None, self._usage(completion), is_first=False).model_dump_json()

    def _chunk(self, delta: Delta, usage: CompletionUsage | None, is_first: bool, hidden: set[str] | None) -> str:
        return self.form.chunk(self._head, delta, usage, is_first=is_first).model_dump_json(exclude=hidden)

    def _step(self, delta: Delta) -> Event:
        [step] = self.form.extras.trace_of([delta]) or []
        return Event(STEP, self.form.traced(self._head, step).model_dump_json(exclude={"usage"}))

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
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=completion.num_reasoning_tokens),
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
