"""Writes answers as JSON, whole or in pieces: here in the `server.protocols.forms` of completions and chat."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

from engine import DiffusionParams
from server.errors import ApiError
from server.protocols.forms import Extras, Form
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
END = "[DONE]"
"""The last message of a stream of completions or chat."""


class Event(NamedTuple):
    """A message of a stream that has a name. Of completions and chat it is no chunk: clients may pass over it."""

    name: str
    data: str


Message = str | Event
"""One message of a stream."""


class Writer(Protocol):
    """Writes one answer in the form of one API."""

    @property
    def ping(self) -> Message | None:
        """What is sent when nothing has been for long; None is a comment."""
        ...

    async def whole(self, completion: Completion) -> str:
        """The whole answer."""
        ...

    def messages(self, completion: Completion) -> AsyncIterator[Message]:
        """The messages of a stream, the last one included."""
        ...

    def failure(self, error: ApiError) -> Sequence[Message]:
        """What ends a stream that has failed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What all parts of one answer have in common, in whatever form they are written."""

    prefix: str
    """Prefix of the id, which tells the API."""
    model: str
    fingerprint: str
    """The server's fingerprint, from `server.protocols.service`."""
    diffusion: DiffusionParams
    """The parameters that the answer is decoded with, the server's defaults included."""
    extras: Extras
    constraint: ConstraintUsage | None = None
    key: str = field(default_factory=lambda: secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        return self.prefix + self.key

    def usage(self, completion: Completion) -> CompletionUsage:
        """What the answer has cost so far."""
        usage = completion.usage
        relayed = usage.relayed
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
                kv_evicted=None if self.diffusion.kv_budget is None else usage.kv_evicted,
                kv_resident_peak=None if self.diffusion.kv_budget is None else usage.kv_resident_peak,
                tokens_per_forward=usage.tokens_per_forward,
                constraint=self.constraint,
                relay_adopted=relayed.adopted if relayed else None,
                relay_recomputed=relayed.recomputed if relayed else None,
                relay_unknown=relayed.unknown if relayed else None,
                fills=completion.fills,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseWriter:
    """Writes one answer of completions or chat, whole or in chunks."""

    form: Form
    answer: Answer
    options: StreamOptions
    """What a stream says of its usage."""

    @property
    def ping(self) -> None:
        return None

    async def whole(self, completion: Completion) -> str:
        deltas = await completion.fold()
        usage = self.answer.usage(completion)
        size = sum(self.answer.extras.num_written(delta, is_first=True) for delta in deltas)
        return await in_thread_if_long(size, lambda: self.form.whole(self._head, deltas, usage).model_dump_json())

    async def messages(self, completion: Completion) -> AsyncIterator[Message]:
        """The openings of the choices, then one chunk for each completed block; `usage` as the options ask for it.

        The steps of an answer that is watched are events of their own.
        """
        options, extras = self.options, self.answer.extras
        hidden = None if options.include_usage else {"usage"}
        is_running = options.include_usage and options.continuous_usage_stats
        for index in range(completion.num_choices):
            running = self.answer.usage(completion) if is_running else None
            if opening := self.form.opening(self._head, index, running):
                yield opening.model_dump_json(exclude=hidden)
        begun: set[int] = set()
        async for delta in completion.deltas():
            if delta.traced:
                yield await in_thread_if_long(extras.num_written(delta, is_first=False), partial(self._step, delta))
                continue
            running = self.answer.usage(completion) if is_running else None
            is_first = delta.index not in begun
            begun.add(delta.index)
            size = extras.num_written(delta, is_first=is_first)
            yield await in_thread_if_long(size, partial(self._chunk, delta, running, is_first, hidden))
        if options.include_usage:
            yield self.form.chunk(self._head, None, self.answer.usage(completion), is_first=False).model_dump_json()
        yield END

    def failure(self, error: ApiError) -> Sequence[Message]:
        return json.dumps(error.body), END

    def _chunk(self, delta: Delta, usage: CompletionUsage | None, is_first: bool, hidden: set[str] | None) -> str:
        return self.form.chunk(self._head, delta, usage, is_first=is_first).model_dump_json(exclude=hidden)

    def _step(self, delta: Delta) -> Event:
        [step] = self.answer.extras.trace_of([delta]) or []
        return Event(STEP, self.form.traced(self._head, step).model_dump_json(exclude={"usage"}))

    @property
    def _head(self) -> dict[str, Any]:
        answer = self.answer
        return {
            "id": answer.id,
            "created": answer.created,
            "model": answer.model,
            "system_fingerprint": answer.fingerprint,
        }
