"""The journey of one engine request: when it came, left the queue and completed its blocks, and how it ended.

Tells observers, such as metrics, the log and tracing. Knows nothing of what they do with it.
"""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from engine import FinishReason, Output, OutputStream, Submission, Usage
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
class Journey:
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

    def saw_block(self, journey: Journey, seconds: float) -> None:
        """`seconds`: since the block before, or since submission for the first block."""

    def saw_end(self, journey: Journey) -> None:
        """Called once for each request."""


class Watch:
    """Wraps streams for its observers. Holds the server's token counts and pace."""

    def __init__(self, observers: Sequence[Observer] = (), tokens: TokenCounts | None = None) -> None:
        self.tokens = tokens or TokenCounts()
        self.pace = Pace()
        self._observers = observers

    def over(self, stream: OutputStream, submission: Submission, siblings: Siblings) -> "WatchedStream":
        return WatchedStream(stream, submission, siblings, self._observers, self.pace)


class WatchedStream:
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
        self.journey = Journey(submission=submission, siblings=siblings, submitted=time.monotonic(), usage=usage)

    async def __aiter__(self) -> AsyncIterator[Output]:
        try:
            async for output in self._stream:
                self._saw(output)
                yield output
        except Exception:
            self._end(FinishReason.ERROR)
            raise

    def finish(self, reason: FinishReason, usage: Usage | None = None) -> None:
        """Ends the answer and aborts the engine request. `usage`: the answer's, if it differs from the engine's."""
        if usage:
            self.journey = replace(self.journey, usage=usage)
        self._end(reason)
        self._stream.abort()

    def abort(self) -> None:
        """Ends the answer because its reader has left. Has no effect after the end."""
        self.finish(FinishReason.ABORT)

    def _saw(self, output: Output) -> None:
        self.journey = replace(self.journey, usage=output.usage, admitted=output.admitted_at)
        if output.finish_reason is FinishReason.ABORT:  # marks the end and is no block
            return
        now, journey = time.monotonic(), self.journey
        since = journey.submitted if journey.last_block is None else journey.last_block
        self.journey = replace(
            journey,
            first_block=now if journey.first_block is None else journey.first_block,
            last_block=now,
        )
        for observer in self._observers:
            observer.saw_block(self.journey, now - since)

    def _end(self, reason: FinishReason) -> None:
        if self.journey.ended is None:
            self.journey = replace(self.journey, ended=time.monotonic(), finish_reason=reason)
            self._pace.count_end()
            siblings = self.journey.siblings
            siblings.num_running -= 1
            siblings.longest = max(siblings.longest, self.journey.usage.completion_tokens)
            for observer in self._observers:
                observer.saw_end(self.journey)
