"""An answer as a message: whole, or as a stream of named events."""

from collections.abc import AsyncIterator, Iterator, Sequence
from hashlib import sha256
from typing import Any

from pydantic_core import from_json, to_json

from engine import FinishReason
from server.errors import ApiError
from server.protocols.blocks import Block, Blocks, Change, Closed, Grown, Opened
from server.protocols.messages.schema import (
    Content,
    MessageResponse,
    MessagesUsage,
    StopReason,
    TextContent,
    ThinkingContent,
    ToolUseContent,
)
from server.protocols.response import STEP, Answer, Event, Message
from server.replies.choice import Delta
from server.replies.completion import Completion
from server.schemas import TraceStep
from server.threads import in_thread_if_long

PREFIX = "msg_"
_DELTAS = {
    "call": ("input_json_delta", "partial_json"),
    "reasoning": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
}
"""Types of deltas, and the field that each has."""


class MessagesWriter:
    """Writes one answer."""

    def __init__(self, answer: Answer, *, is_bounded_by_context: bool) -> None:
        """`is_bounded_by_context`: the context holds fewer tokens than the request asked for."""
        self._answer = answer
        self._is_bounded_by_context = is_bounded_by_context
        self._blocks = Blocks()
        self._end: Delta | None = None

    @property
    def ping(self) -> Event:
        return self._event("ping")

    async def whole(self, completion: Completion) -> str:
        size = 0
        trace: list[TraceStep] = []
        async for delta in completion.deltas():
            size += self._answer.extras.num_written(delta, is_first=False)
            trace += self._answer.extras.trace_of([delta]) or []
            for _ in self._changes(delta):
                pass
        return await in_thread_if_long(size, lambda: self._message(completion, trace).model_dump_json())

    async def messages(self, completion: Completion) -> AsyncIterator[Message]:
        yield self._event("message_start", message=self._message(completion))
        yield self.ping
        async for delta in completion.deltas():
            for step in self._answer.extras.trace_of([delta]) or ():
                yield self._event(STEP, trace=step)
            for change in self._changes(delta):
                yield self._told(change)
        ended = self._message(completion)
        extras = {} if ended.shown is None else {"shown": ended.shown}
        delta_ = {"stop_reason": ended.stop_reason, "stop_sequence": ended.stop_sequence}
        yield self._event("message_delta", delta=delta_, usage=ended.usage, **extras)
        yield self._event("message_stop")

    def failure(self, error: ApiError) -> Sequence[Message]:
        return (Event("error", to_json(error.body).decode()),)

    def _changes(self, delta: Delta) -> Iterator[Change]:
        if delta.finish_reason is not None:
            self._end = delta
        yield from self._blocks.read(delta)

    def _told(self, change: Change) -> Event:
        block = change.block
        match change:
            case Opened():
                return self._event("content_block_start", index=block.index, content_block=self._content(block))
            case Grown(text=added):
                kind, name = _DELTAS[block.kind]
                return self._event("content_block_delta", index=block.index, delta={"type": kind, name: added})
            case Closed():
                return self._event("content_block_stop", index=block.index)

    def _event(self, kind: str, **fields: Any) -> Event:
        return Event(kind, to_json({"type": kind, **fields}).decode())

    def _message(self, completion: Completion, trace: Sequence[TraceStep] = ()) -> MessageResponse:
        """The answer if it has ended, or else what a stream begins with."""
        end, extras = self._end, self._answer.extras
        reason = self._stop_reason(end) if end else None
        return MessageResponse(
            id=self._answer.id,
            model=self._answer.model,
            content=[self._content(block) for block in self._blocks.all],
            stop_reason=reason,
            stop_sequence=str(end.stop) if end and reason == "stop_sequence" else None,
            usage=self._usage(completion),
            trace=list(trace) or None,
            shown=list(end.shown) if end and extras.trace else None,
        )

    def _stop_reason(self, end: Delta) -> StopReason:
        if end.finish_reason is FinishReason.LENGTH:
            return "model_context_window_exceeded" if self._is_bounded_by_context else "max_tokens"
        if isinstance(end.stop, str):
            return "stop_sequence"
        return "tool_use" if end.num_calls and not end.is_amid_call else "end_turn"

    def _usage(self, completion: Completion) -> MessagesUsage:
        usage = self._answer.usage(completion)
        cached = usage.prompt_tokens_details.cached_tokens
        return MessagesUsage(
            input_tokens=usage.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=usage.completion_tokens,
            diffusion=usage.diffusion,
        )

    def _content(self, block: Block) -> Content:
        """Of a call that was cut, the arguments that are there, as Anthropic's client reads them too."""
        match block.kind:
            case "text":
                return TextContent(text=block.text)
            case "reasoning":
                return ThinkingContent(thinking=block.text)
            case "call":
                key = sha256(f"{self._answer.id}:{block.index}".encode()).hexdigest()[:24]
                return ToolUseContent(id=f"toolu_{key}", name=block.name, input=_object(block.text))


def _object(text: str) -> dict[str, Any]:
    try:
        found = from_json(text, allow_partial=True) if text else {}
    except ValueError:  # no constraint has made it
        return {}
    return found if isinstance(found, dict) else {}
