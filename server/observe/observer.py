"""Observers of engine requests: what they are told of each block and each end, and the stream that tells them.

A request's stats say when it came, left the queue and completed its blocks, and how it ended. Metrics, the log and
tracing are observers; what they do with the stats is not known here.
"""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from engine import FinishReason, Output, OutputStream, Submission, TracedStep, Usage
from server.observe.pace import Pace


@dataclass(slots=True)
class TokenCounts:
    """Tokens of all answers so far, as `usage` counts them: each prompt once, and only tokens that clients received."""

    prompt: int = 0
    generation: int = 0


@dataclass(slots=True, kw_only=True)
class Siblings:
    """The choices of one prompt, each an engine request."""

    n: int
    """Choices that a whole answer keeps."""
    num_running: int
    longest: int = 0
    """Tokens of the longest choice that has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStats:
    """The times and usage of one request so far. Times are of `time.monotonic()`, in seconds."""

    submission: Submission
    siblings: Siblings
    """All choices of the prompt, this one included."""
    submitted: float
    usage: Usage
    """Usage up to the last block seen."""
    admitted: float | None = None
    """Time at which the request left the queue."""
    first_block: float | None = None
    last_block: float | None = None
    ended: float | None = None
    finish_reason: FinishReason | None = None
    """The reason that the client sees: a stop string ends an answer that the engine would continue."""

    @property
    def queue_seconds(self) -> float | None:
        return None if self.admitted is None else max(self.admitted - self.submitted, 0.0)

    @property
    def first_block_seconds(self) -> float | None:
        """From submission to the first block."""
        return None if self.first_block is None else self.first_block - self.submitted

    @property
    def seconds(self) -> float:
        """From submission to the end, or to the last block so far."""
        return (self.ended or self.last_block or self.submitted) - self.submitted

    @property
    def seconds_per_token(self) -> float | None:
        """Mean time for each token after the first block; None if there was no further block or no end yet."""
        if self.ended is None or self.first_block is None or self.first_block == self.last_block:
            return None
        return (self.ended - self.first_block) / max(self.usage.completion_tokens - 1, 1)


class Observer(Protocol):
    """Is called for each block and each end of a request."""

    def on_block(self, stats: RequestStats, seconds: float) -> None:
        """`seconds`: since the block before, or since submission for the first block."""

    def on_end(self, stats: RequestStats) -> None:
        """Called once for each request."""


class Observers:
    """The observers of one server's requests, with the token counts and the pace of these requests."""

    def __init__(self, members: Sequence[Observer] = (), tokens: TokenCounts | None = None) -> None:
        self.tokens = tokens or TokenCounts()
        self.pace = Pace()
        self._members = members

    def observe(self, stream: OutputStream, submission: Submission, siblings: Siblings) -> "ObservedStream":
        """The stream of one request, from which the observers learn of its blocks and its end."""
        return ObservedStream(stream, submission, siblings, self._members, self.pace)


class ObservedStream:
    """An OutputStream that tells observers of its blocks and its end. Its reader calls `finish` or `abort`."""

    def __init__(
        self,
        stream: OutputStream,
        submission: Submission,
        siblings: Siblings,
        observers: Sequence[Observer],
        pace: Pace,
    ) -> None:
        self._stream = stream
        self._pace = pace
        self._observers = observers
        usage = Usage(prompt_tokens=len(submission.prompt_ids), completion_tokens=0, forwards=0, rows_computed=0)
        self.stats = RequestStats(submission=submission, siblings=siblings, submitted=time.monotonic(), usage=usage)

    async def __aiter__(self) -> AsyncIterator[Output | TracedStep]:
        try:
            async for output in self._stream:
                if isinstance(output, Output):
                    self._saw(output)
                yield output
        except Exception:
            self._end(FinishReason.ERROR)
            raise

    def finish(self, reason: FinishReason, usage: Usage | None = None) -> None:
        """Ends the answer and aborts the engine request. `usage`: the answer's, if it differs from the engine's."""
        if usage:
            self.stats = replace(self.stats, usage=usage)
        self._end(reason)
        self._stream.abort()

    def abort(self) -> None:
        """Ends the answer because its reader has left. Has no effect after the end."""
        self.finish(FinishReason.ABORT)

    def _saw(self, output: Output) -> None:
        self.stats = replace(self.stats, usage=output.usage, admitted=output.admitted_at)
        if output.finish_reason is FinishReason.ABORT:  # marks the end and is no block
            return
        now, stats = time.monotonic(), self.stats
        since = stats.submitted if stats.last_block is None else stats.last_block
        self.stats = replace(
            stats,
            first_block=now if stats.first_block is None else stats.first_block,
            last_block=now,
        )
        for observer in self._observers:
            observer.on_block(self.stats, now - since)

    def _end(self, reason: FinishReason) -> None:
        if self.stats.ended is None:
            self.stats = replace(self.stats, ended=time.monotonic(), finish_reason=reason)
            self._pace.count_end()
            siblings = self.stats.siblings
            siblings.num_running -= 1
            siblings.longest = max(siblings.longest, self.stats.usage.completion_tokens)
            for observer in self._observers:
                observer.on_end(self.stats)
