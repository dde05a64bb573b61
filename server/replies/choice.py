"""One choice of an answer while it grows: the engine's stream turned into text, block by block.

Knows the engine's types and text, nothing of JSON or HTTP.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Protocol

from engine import EngineUnavailable, FinishReason, Output, RequestFailed, Usage
from server.aside import aside
from server.replies.passage import Passage, Token, shifted

NOTHING = Usage(prompt_tokens=0, completion_tokens=0, forwards=0, rows_computed=0)


class Stream(Protocol):
    """What the engine says of one request, as `server.observe.watch.WatchedStream` hands it out."""

    def __aiter__(self) -> AsyncIterator[Output]: ...

    def finish(self, reason: FinishReason, usage: Usage) -> None: ...

    def abort(self) -> None: ...


class EmptyStream:
    """The answer of no tokens at all: the engine is not asked for it."""

    async def __aiter__(self) -> AsyncIterator[Output]:
        yield Output(request_id="", token_ids=(), finish_reason=FinishReason.LENGTH, usage=NOTHING)

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Nobody watches."""

    def abort(self) -> None:
        """Nothing runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one completed block adds to one choice."""

    index: int
    text: str
    """Empty where the block holds nothing to show, or nothing that is final yet."""
    tokens: Sequence[Token] = ()
    """Those that begin in the text, where somebody asked for them."""
    prompt_tokens: Sequence[Token] = ()
    """Of a scored prompt, with the first part of a choice that echoes it."""
    finish_reason: FinishReason | None
    stop: str | int | None = None
    """The stop string or stop token that ended the choice."""
    usage: Usage
    """Of this choice up to here."""
    fills: tuple[str, ...] | None = None
    """Of infilling, at the end: the text of each hole."""


class Choice:
    """One engine request as text: passages of generated text between literal ones."""

    def __init__(
        self,
        index: int,
        stream: Stream,
        passages: Sequence[Passage],
        *,
        literals: Sequence[str] = (),
        prompt_tokens: Sequence[Token] = (),
    ) -> None:
        """`literals`: text before, between and behind the passages, if any. `prompt_tokens`: of the first of them."""
        self.index = index
        self._stream = stream
        self._passages = passages
        self._literals = literals or [""] * (len(passages) + 1)
        self._prompt_tokens = prompt_tokens
        self._open = 0
        """The passage that is being read, and ..."""
        self._num_taken = 0
        """... the tokens that it has."""
        self._base = len(self._literals[0])
        """Where the open passage begins in the text."""
        self._texts = [""] * len(passages)
        self._logprobs: list[float] = []
        """Of the tokens that its passages show, where they are known."""

    @property
    def mean_logprob(self) -> float:
        """How sure the model was of the tokens shown so far; nothing is less sure than an empty answer."""
        return sum(self._logprobs) / len(self._logprobs) if self._logprobs else -inf

    async def deltas(self) -> AsyncIterator[Delta]:
        """One for each block. Raises RequestFailed, or EngineUnavailable if the server shut down meanwhile."""
        text, prompt_tokens = self._literals[0], self._prompt_tokens
        async for output in self._stream:
            reason: FinishReason | None = output.finish_reason
            stop: str | int | None = output.stop_id
            usage = output.usage
            check_end(output)
            more, tokens = await aside(len(output.token_ids), partial(self._read, output))
            if self._is_fill:
                reason = reason and self._reason_of_fills
                stop = None
            elif self._passages[0].stop is not None:
                reason, stop = FinishReason.STOP, self._passages[0].stop
                if isinstance(stop, str):
                    usage = replace(usage, completion_tokens=self._passages[0].num_tokens)
            if reason is not None:
                self._stream.finish(reason, usage)
            yield Delta(
                index=self.index,
                text=text + more,
                tokens=tokens,
                prompt_tokens=prompt_tokens,
                finish_reason=reason,
                stop=stop,
                usage=usage,
                fills=tuple(self._texts) if reason and self._is_fill else None,
            )
            if reason is not None:
                return
            text, prompt_tokens = "", ()
        raise RequestFailed("The engine ended this request without a reason.")

    def abort(self) -> None:
        self._stream.abort()

    @property
    def _is_fill(self) -> bool:
        return self._passages[0].length is not None

    @property
    def _reason_of_fills(self) -> FinishReason:
        """A fill that nothing cut short has used up its hole."""
        return FinishReason.STOP if all(passage.stop is not None for passage in self._passages) else FinishReason.LENGTH

    def _read(self, output: Output) -> tuple[str, list[Token]]:
        """Hands a block's tokens to the passages that they belong to."""
        ids, logprobs = output.token_ids, output.logprobs
        text, tokens = "", list[Token]()
        while self._open < len(self._passages):
            passage = self._passages[self._open]
            room = len(ids) if passage.length is None else passage.length - self._num_taken
            is_last = output.finish_reason is not None if passage.length is None else len(ids) >= room
            fresh, begun = passage.push(ids[:room], logprobs and logprobs[:room], last=is_last)
            self._num_taken += len(ids[:room])
            ids, logprobs = ids[room:], logprobs and logprobs[room:]
            self._texts[self._open] += fresh
            self._logprobs += [token.logprobs.logprob for token in begun if token.logprobs]
            text, tokens = text + fresh, tokens + shifted(begun, self._base)
            if not is_last:
                break
            self._base += len(self._texts[self._open]) + len(self._literals[self._open + 1])
            text += self._literals[self._open + 1]
            self._open, self._num_taken = self._open + 1, 0
        return text, tokens


def check_end(output: Output) -> None:
    """Raises for a request that the engine gave up."""
    if output.finish_reason is FinishReason.ABORT:
        raise EngineUnavailable("The server shut down before this answer was complete.")
    if output.finish_reason is FinishReason.ERROR:
        raise RequestFailed("The engine failed while serving this request.")
