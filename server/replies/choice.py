"""One choice of an answer: the engine's stream of blocks, turned into text block by block.

Knows the engine's types and text, but not JSON or HTTP.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Protocol

from engine import EngineUnavailable, FinishReason, Output, Range, RequestFailed, TracedStep, Usage
from server.replies.content_tokens import ContentTokens
from server.replies.passage import Passage, Token, shifted
from server.replies.reasoning import ReasoningReader
from server.replies.tool_calls import CallDelta, Content, Part, ToolCallReader
from server.threads import in_thread_if_long

NOTHING = Usage(prompt_tokens=0, completion_tokens=0, forwards=0, rows_computed=0)


class Stream(Protocol):
    """The outputs of one engine request, and its steps if it is watched.

    `server.observe.observer.ObservedStream` implements it.
    """

    def __aiter__(self) -> AsyncIterator[Output | TracedStep]: ...

    def finish(self, reason: FinishReason, usage: Usage) -> None: ...

    def abort(self) -> None: ...


class EmptyStream:
    """The stream of a choice without tokens: no request is submitted to the engine."""

    async def __aiter__(self) -> AsyncIterator[Output]:
        yield Output(request_id="", token_ids=(), finish_reason=FinishReason.LENGTH, usage=NOTHING)

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """Does nothing: there is no observer to tell."""

    def abort(self) -> None:
        """Does nothing: there is no engine request to abort."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one completed block adds to one choice. With calls in it, several deltas: each has text, or one call."""

    index: int
    text: str
    """Empty if the block has no visible text, or none that is final yet."""
    reasoning: str = ""
    """What the block adds to the reasoning before the text. Only in its first delta."""
    num_reasoning_tokens: int = 0
    """Tokens of the choice's reasoning so far."""
    calls: Sequence[CallDelta] = ()
    num_calls: int = 0
    """Calls of the choice so far."""
    is_amid_call: bool = False
    """Whether the choice's text so far ends in a call whose arguments are not complete."""
    tokens: Sequence[Token] = ()
    """The tokens that begin in the text or calls of the block, if the request asked for tokens. Only in its first
    delta."""
    content_tokens: Sequence[Token] = ()
    """Those of `text` alone, without reasoning and calls; with the text, which may become final later."""
    prompt_tokens: Sequence[Token] = ()
    """The tokens of a scored prompt. Only in the first delta of a choice."""
    finish_reason: FinishReason | None = None
    """Only in the last delta of a choice."""
    stop: str | int | None = None
    """The stop string or stop token that ended the choice."""
    usage: Usage
    """Usage of this choice so far."""
    fills: tuple[str, ...] | None = None
    """For infilling, in the last delta: the text of each hole."""
    traced: Sequence[TracedStep] = ()
    """One step, in a delta that has nothing else; in that of a whole choice, all of them."""
    prompt_ids: Sequence[int] = ()
    """The token ids of the choice's prompt."""
    shown: Sequence[Range] = ()
    """In the last delta, if the request asked for tokens: where these stand on the canvas, passage by passage."""


class Choice:
    """One engine request as text: generated passages between literal texts."""

    def __init__(
        self,
        index: int,
        stream: Stream,
        passages: Sequence[Passage],
        *,
        literals: Sequence[str] = (),
        prompt_ids: Sequence[int] = (),
        starts: Sequence[int] = (),
        prompt_tokens: Sequence[Token] = (),
        reader: ToolCallReader | None = None,
        reasoning: ReasoningReader | None = None,
    ) -> None:
        """`literals`: the texts before, between and after the passages; without any, all are empty.

        `prompt_ids`: the token ids of the prompt. `starts`: the position on the canvas at which each passage begins.
        `prompt_tokens`: the tokens of the scored prompt, which is the first literal. `reader`: finds calls in the text;
        None leaves all of it text. `reasoning`: tells reasoning from the text; None leaves it in.
        """
        self.index = index
        self._stream = stream
        self._passages = passages
        self._literals = literals or [""] * (len(passages) + 1)
        self._prompt_ids = prompt_ids
        self._starts = starts
        self._prompt_tokens = prompt_tokens
        self._reader = reader
        self._reasoning = reasoning
        self._content_tokens = ContentTokens()
        self._num_parted = 0
        """Characters of the text that calls were looked for in."""
        self._open = 0
        """Index of the passage that the next token belongs to."""
        self._num_taken = 0
        """Tokens that the open passage has received."""
        self._base = len(self._literals[0])
        """Characters of the choice's text before the open passage."""
        self._texts = [""] * len(passages)
        self._num_shown = [0] * len(passages)
        """Tokens of each passage that its text shows, if the request asked for tokens."""
        self._logprobs: list[float] = []
        """Log-probabilities of the tokens shown so far, of those that have one."""

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the tokens shown so far. Minus infinity without any, so that others rank higher."""
        return sum(self._logprobs) / len(self._logprobs) if self._logprobs else -inf

    async def deltas(self) -> AsyncIterator[Delta]:
        """One or more for each block.

        Raises RequestFailed, or EngineUnavailable if the server shuts down before the end.
        """
        text, prompt_tokens = self._literals[0], self._prompt_tokens
        spent = NOTHING
        async for output in self._stream:
            if isinstance(output, TracedStep):
                yield Delta(index=self.index, text="", usage=spent, traced=(output,), prompt_ids=self._prompt_ids)
                continue
            reason: FinishReason | None = output.finish_reason
            stop: str | int | None = output.stop_id
            usage = output.usage
            check_end(output)
            more, tokens = await in_thread_if_long(len(output.token_ids), partial(self._read, output))
            if self._is_fill:
                reason = reason and self._reason_of_fills
                stop = None
            elif self._passages[0].stop is not None:
                reason, stop = FinishReason.STOP, self._passages[0].stop
                if isinstance(stop, str):
                    usage = replace(usage, completion_tokens=self._passages[0].num_tokens)
            if reason is not None:
                self._stream.finish(reason, usage)
            spent = usage
            text, reasoning = text + more, ""
            if self._reasoning:
                reasoning, text = self._reasoning.push(text, output.token_ids, last=reason is not None)
            self._content_tokens.push(tokens)
            *before, last = self._parts(text, last=reason is not None)
            for part in before:
                yield replace(self._delta(part, usage), reasoning=reasoning, tokens=tokens, prompt_tokens=prompt_tokens)
                reasoning, tokens, prompt_tokens = "", [], ()
            delta = self._delta(last, usage)
            yield replace(
                delta,
                reasoning=reasoning,
                tokens=tokens,
                content_tokens=[*delta.content_tokens, *self._tokens_at_end] if reason else delta.content_tokens,
                prompt_tokens=prompt_tokens,
                finish_reason=reason,
                stop=stop,
                fills=tuple(self._texts) if reason and self._is_fill else None,
                shown=self._shown if reason else (),
            )
            if reason is not None:
                return
            text, prompt_tokens = "", ()
        raise RequestFailed("The engine ended this request without a reason.")

    def abort(self) -> None:
        self._stream.abort()

    @property
    def _shown(self) -> tuple[Range, ...]:
        return tuple((start, start + count) for start, count in zip(self._starts, self._num_shown, strict=False))

    def _parts(self, text: str, *, last: bool) -> list[Part]:
        """The content and calls that have become final; empty content if there are none."""
        start, self._num_parted = self._num_parted, self._num_parted + len(text)
        if self._reader is None:
            return [Content(text, start)]
        return self._reader.push(text, last=last) or [Content("", start)]

    def _delta(self, part: Part, usage: Usage) -> Delta:
        delta = Delta(
            index=self.index,
            text="",
            num_reasoning_tokens=self._reasoning.num_tokens if self._reasoning else 0,
            usage=usage,
            prompt_ids=self._prompt_ids,
        )
        if isinstance(part, Content):
            delta = replace(delta, text=part.text, content_tokens=self._tokens_of(part))
        else:
            delta = replace(delta, calls=(part,))
        if self._reader is None:
            return delta
        return replace(delta, num_calls=self._reader.num_calls, is_amid_call=self._reader.is_amid_call)

    def _tokens_of(self, content: Content) -> Sequence[Token]:
        if self._reader is None and self._reasoning is None:
            return self._content_tokens.rest()
        before = (self._reasoning and self._reasoning.start) or 0
        return self._content_tokens.within(before + content.start, before + content.end)

    @property
    def _tokens_at_end(self) -> Sequence[Token]:
        """Tokens without text behind the last of the content. Calls and reasoning keep those behind them."""
        has_called = self._reader and (self._reader.num_calls or self._reader.is_amid_call)
        is_reasoning = self._reasoning and self._reasoning.start is None
        return () if has_called or is_reasoning else self._content_tokens.rest()

    @property
    def _is_fill(self) -> bool:
        return self._passages[0].length is not None

    @property
    def _reason_of_fills(self) -> FinishReason:
        """STOP if every passage met a stop; LENGTH if any fill used all positions of its hole."""
        return FinishReason.STOP if all(passage.stop is not None for passage in self._passages) else FinishReason.LENGTH

    def _read(self, output: Output) -> tuple[str, list[Token]]:
        """Hands a block's tokens to the passages that they belong to. Returns the new text and its tokens."""
        ids, logprobs, steps = output.token_ids, output.logprobs, output.steps
        text, tokens = "", list[Token]()
        while self._open < len(self._passages):
            passage = self._passages[self._open]
            room = len(ids) if passage.length is None else passage.length - self._num_taken
            is_last = output.finish_reason is not None if passage.length is None else len(ids) >= room
            fresh, begun = passage.push(ids[:room], logprobs and logprobs[:room], steps and steps[:room], last=is_last)
            self._num_taken += len(ids[:room])
            ids, logprobs, steps = ids[room:], logprobs and logprobs[room:], steps and steps[room:]
            self._texts[self._open] += fresh
            self._num_shown[self._open] += len(begun)
            self._logprobs += [token.logprobs.logprob for token in begun if token.logprobs]
            text, tokens = text + fresh, tokens + shifted(begun, self._base)
            if not is_last:
                break
            self._base += len(self._texts[self._open]) + len(self._literals[self._open + 1])
            text += self._literals[self._open + 1]
            self._open, self._num_taken = self._open + 1, 0
        return text, tokens


def check_end(output: Output) -> None:
    """Raises EngineUnavailable for a request that the engine aborted, RequestFailed for one that failed."""
    if output.finish_reason is FinishReason.ABORT:
        raise EngineUnavailable("The server shut down before this answer was complete.")
    if output.finish_reason is FinishReason.ERROR:
        raise RequestFailed("The engine failed while serving this request.")
