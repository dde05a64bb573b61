"""An answer as a response: whole, or as a stream of named events."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from hashlib import sha256
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from engine import FinishReason
from server.errors import INTERNAL, ApiError
from server.protocols.blocks import Block, Blocks, Change, Closed, Grown, Opened
from server.protocols.response import STEP, Answer, Event, Message
from server.protocols.responses.output import (
    IncompleteDetails,
    InputTokensDetails,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    OutputTokensDetails,
    ReasoningText,
    Response,
    ResponseError,
    ResponsesUsage,
    Status,
)
from server.protocols.responses.schema import ResponsesRequest
from server.replies.choice import Delta
from server.replies.completion import Completion
from server.replies.passage import Token
from server.schemas import ChatLogprob, Tool, TraceStep
from server.threads import in_thread_if_long

PREFIX = "resp_"
_ITEM_PREFIXES = {"call": "fc", "reasoning": "rs", "text": "msg"}


class ResponsesWriter:
    """Writes one answer. Holds how much of it has been written, so that it can end a stream that fails."""

    def __init__(self, answer: Answer, body: ResponsesRequest, tools: Sequence[Tool], temperature: float) -> None:
        """`tools`: the functions that were sent. `temperature`: the effective one."""
        self._answer = answer
        self._blocks = Blocks()
        self._num_events = 0
        self._trace: list[TraceStep] = []
        """Of a whole answer."""
        self._end: Delta | None = None
        asked = body.model_dump(include={"text", "reasoning"}, exclude_unset=True, by_alias=True)
        choice = body.tool_choice or "auto"
        self._repeated: dict[str, Any] = {
            "instructions": body.instructions,
            "tools": [
                {"type": "function", "strict": tool.function.strict, **tool.for_template["function"]} for tool in tools
            ],
            "tool_choice": choice.model_dump() if isinstance(choice, BaseModel) else choice,
            "parallel_tool_calls": body.parallel_tool_calls,
            "text": {"format": {"type": "text"}, **(asked.get("text") or {})},
            "reasoning": {"effort": None, "summary": None, **(asked.get("reasoning") or {})},
            "max_output_tokens": body.max_output_tokens,
            "temperature": temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "top_logprobs": body.top_logprobs or 0,
            "truncation": body.truncation,
            "metadata": body.metadata or {},
            "service_tier": body.service_tier,
            "system_fingerprint": answer.fingerprint,
        }

    @property
    def ping(self) -> None:
        return None

    async def whole(self, completion: Completion) -> str:
        size = 0
        async for delta in completion.deltas():
            size += self._answer.extras.num_written(delta, is_first=False)
            self._trace += self._answer.extras.trace_of([delta]) or []
            for _ in self._changes(delta):
                pass
        return await in_thread_if_long(size, lambda: self._response(completion).model_dump_json())

    async def messages(self, completion: Completion) -> AsyncIterator[Message]:
        yield self._event("response.created", response=self._response())
        yield self._event("response.in_progress", response=self._response())
        async for delta in completion.deltas():
            size = self._answer.extras.num_written(delta, is_first=False)
            for message in await in_thread_if_long(size, lambda delta=delta: list(self._told(delta))):  # type: ignore[misc]
                yield message
        response = self._response(completion)
        yield self._event(f"response.{response.status}", response=response)

    def failure(self, error: ApiError) -> Sequence[Message]:
        """An `error`, which OpenAI's client raises, and the end of the stream that other clients look for."""
        code = error.code or ("server_error" if error.status >= INTERNAL else "invalid_prompt")
        told = {"code": code, "message": error.message, "param": error.param}
        first = self._event("error", **told, error={"type": error.type, **told})
        failed = self._response().model_copy(
            update={"status": "failed", "error": ResponseError(code=code, message=error.message)}
        )
        return first, self._event("response.failed", response=failed)

    def _changes(self, delta: Delta) -> Iterator[Change]:
        if delta.finish_reason is not None:
            self._end = delta
        yield from self._blocks.read(delta)

    def _told(self, delta: Delta) -> Iterator[Event]:
        for step in self._answer.extras.trace_of([delta]) or ():
            yield self._event(STEP, trace=step)
        for change in self._changes(delta):
            yield from self._events(change)

    def _events(self, change: Change) -> Iterator[Event]:
        block, text = change.block, change.block.text
        item = {"output_index": block.index}
        within: dict[str, Any] = {**item, "item_id": self._item_id(block)}
        shown = self._item(block, _status(block) if isinstance(change, Closed) else "in_progress")
        part: OutputText | ReasoningText | None = None
        kind = "function_call_arguments"
        if not isinstance(shown, OutputCall):
            part, kind = shown.content[0], "output_text" if block.kind == "text" else "reasoning_text"
            within["content_index"] = 0
        match change:
            case Opened():
                empty = shown if part is None else shown.model_copy(update={"content": []})
                yield self._event("response.output_item.added", **item, item=empty)
                if part:
                    yield self._event("response.content_part.added", **within, part=part)
            case Grown(text=added, tokens=tokens):
                logprobs = {"logprobs": self._logprobs(tokens)} if block.kind == "text" else {}
                yield self._event(f"response.{kind}.delta", **within, delta=added, **logprobs)
            case Closed():
                if part is None:
                    yield self._event(f"response.{kind}.done", **within, name=block.name, arguments=text)
                else:
                    logprobs = {"logprobs": part.logprobs} if isinstance(part, OutputText) else {}
                    yield self._event(f"response.{kind}.done", **within, text=text, **logprobs)
                    yield self._event("response.content_part.done", **within, part=part)
                yield self._event("response.output_item.done", **item, item=shown)

    def _event(self, kind: str, **fields: BaseModel | Sequence[BaseModel] | Any) -> Event:
        number, self._num_events = self._num_events, self._num_events + 1
        return Event(kind, to_json({"type": kind, "sequence_number": number, **fields}).decode())

    def _response(self, completion: Completion | None = None) -> Response:
        """The answer so far; at its end, with its usage. `completion`: the answer that has ended."""
        answer, end = self._answer, self._end if completion else None
        is_cut = end is not None and end.finish_reason is FinishReason.LENGTH
        return Response(
            id=answer.id,
            created_at=answer.created,
            completed_at=int(time.time()) if end and not is_cut else None,
            status="in_progress" if end is None else "incomplete" if is_cut else "completed",
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut else None,
            model=answer.model,
            output=[self._item(block, _status(block)) for block in self._blocks.all],
            usage=self._usage(completion) if completion else None,
            trace=self._trace or None,
            shown=list(end.shown) if end and answer.extras.trace else None,
            **self._repeated,
        )

    def _usage(self, completion: Completion) -> ResponsesUsage:
        usage = self._answer.usage(completion)
        return ResponsesUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(
                reasoning_tokens=usage.completion_tokens_details.reasoning_tokens
            ),
            total_tokens=usage.total_tokens,
            diffusion=usage.diffusion,
        )

    def _item(self, block: Block, status: Status) -> OutputItem:
        id_ = self._item_id(block)
        match block.kind:
            case "call":
                call = f"call_{id_.partition('_')[2]}"
                return OutputCall(id=id_, status=status, call_id=call, name=block.name, arguments=block.text)
            case "reasoning":
                return OutputReasoning(id=id_, status=status, content=[ReasoningText(text=block.text)])
            case "text":
                text = OutputText(text=block.text, logprobs=self._logprobs(block.tokens))
                return OutputMessage(id=id_, status=status, content=[text])

    def _item_id(self, block: Block) -> str:
        """The id follows from the answer's and from the place in it."""
        key = sha256(f"{self._answer.id}:{block.index}".encode()).hexdigest()[:24]
        return f"{_ITEM_PREFIXES[block.kind]}_{key}"

    def _logprobs(self, tokens: Sequence[Token]) -> list[ChatLogprob]:
        writer = self._answer.extras.logprobs
        return list(writer.for_chat(tokens).content) if writer else []


def _status(block: Block) -> Status:
    return "completed" if block.is_whole else "incomplete"
