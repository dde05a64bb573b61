"""One answer while it grows: the engine's streams turned into text, block by block, its choices interleaved.

A whole answer is the fold of the streamed one. Knows the engine's types and text, nothing of JSON or HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from engine import EngineUnavailable, FinishReason, RequestFailed, Usage
from server.text import Detokenizer, StopStrings
from server.watch import WatchedStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one completed block adds to one choice."""

    index: int
    text: str
    """Empty where the block holds nothing to show, or nothing that is final yet."""
    finish_reason: FinishReason | None
    usage: Usage
    """Of this choice up to here."""


class Choice:
    """One engine request as text."""

    def __init__(self, index: int, stream: WatchedStream, detokenizer: Detokenizer, stops: StopStrings) -> None:
        self.index = index
        self._stream = stream
        self._detokenizer = detokenizer
        self._stops = stops

    async def deltas(self) -> AsyncIterator[Delta]:
        """One for each block. Raises RequestFailed, or EngineUnavailable if the server shut down meanwhile."""
        async for output in self._stream:
            reason = output.finish_reason
            if reason is FinishReason.ABORT:
                raise EngineUnavailable("The server shut down before this answer was complete.")
            if reason is FinishReason.ERROR:
                raise RequestFailed("The engine failed while serving this request.")
            last = reason is not None
            text, stopped = self._stops.push(self._detokenizer.push(output.token_ids, last=last), last=last)
            if stopped:
                reason = FinishReason.STOP
            if reason is not None:
                self._stream.finish(reason)
            yield Delta(index=self.index, text=text, finish_reason=reason, usage=output.usage)
            if reason is not None:
                return
        raise RequestFailed("The engine ended this request without a reason.")

    def abort(self) -> None:
        self._stream.abort()


class Completion:
    """The choices of one answer. Whoever reads it must `abort` it in the end, finished or not."""

    def __init__(self, choices: Sequence[Choice], num_prompt_tokens: Sequence[int]) -> None:
        self._choices = choices
        self._usages = [
            Usage(prompt_tokens=count, completion_tokens=0, forwards=0, rows_computed=0) for count in num_prompt_tokens
        ]

    @property
    def usage(self) -> Usage:
        """All choices together, up to here."""
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in self._usages),
            completion_tokens=sum(usage.completion_tokens for usage in self._usages),
            forwards=sum(usage.forwards for usage in self._usages),
            rows_computed=sum(usage.rows_computed for usage in self._usages),
        )

    async def deltas(self) -> AsyncIterator[Delta]:
        """Of all choices, as they come."""
        arrivals: asyncio.Queue[Delta | Exception] = asyncio.Queue()

        async def forward(choice: Choice) -> None:
            try:
                async for delta in choice.deltas():
                    arrivals.put_nowait(delta)
            except Exception as error:  # noqa: BLE001 - raised by whoever reads the arrivals
                arrivals.put_nowait(error)

        readers = [asyncio.create_task(forward(choice)) for choice in self._choices]
        unfinished = len(readers)
        try:
            while unfinished:
                delta = await arrivals.get()
                if isinstance(delta, Exception):
                    raise delta
                self._usages[delta.index] = delta.usage
                unfinished -= delta.finish_reason is not None
                yield delta
        finally:
            for reader in readers:
                reader.cancel()

    async def fold(self) -> list[Delta]:
        """Each choice whole, in the order of the prompts."""
        texts: list[list[str]] = [[] for _ in self._choices]
        ends: dict[int, Delta] = {}
        async for delta in self.deltas():
            texts[delta.index].append(delta.text)
            ends[delta.index] = delta
        return [
            Delta(index=i, text="".join(text), finish_reason=ends[i].finish_reason, usage=ends[i].usage)
            for i, text in enumerate(texts)
        ]

    def abort(self) -> None:
        """Takes unfinished choices out of the engine; may be called at any time and again."""
        for choice in self._choices:
            choice.abort()
