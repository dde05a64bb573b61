"""An engine loop that answers from a script, for servers under test."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from engine import (
    ContextLengthExceeded,
    EngineInfo,
    EngineStats,
    EngineUnavailable,
    FinishReason,
    InvalidRequest,
    ModelSpec,
    Output,
    QueueFull,
    SamplingParams,
    Submission,
    TokenLogprobs,
    Usage,
)
from engine.scheduling.tally import Tally

EOS = 256
MAX_LEN = 128

Step = str | bytes | Sequence[int] | FinishReason | Exception
Script = Callable[[Submission], Sequence[Step]]
"""How the engine answers a submission: blocks, at last the reason for the end (LENGTH if none is given) or an error."""


def said_of(ids: Sequence[int], sampling: SamplingParams) -> tuple[TokenLogprobs, ...] | None:
    """Log-probabilities that follow from the token: token t has -t/256, and the best ones are 0, 1, 2, ..."""
    if sampling.logprobs is None:
        return None
    best = tuple((best, -best / 256) for best in range(sampling.logprobs))
    named = tuple(-id_ / 256 for id_ in sampling.logprob_ids)
    return tuple(TokenLogprobs(-id_ / 256, best, named) for id_ in ids)


class FakeStream:
    """An OutputStream that the test feeds."""

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        self.request_id = submission.request_id
        self.aborted = asyncio.Event()
        self._queue: asyncio.Queue[Output | Exception] = asyncio.Queue()
        self._usage = Usage(prompt_tokens=len(submission.prompt_ids), completion_tokens=0, forwards=0, rows_computed=0)

    def put(
        self, block: str | bytes | Sequence[int], finish: FinishReason | None = None, stop_id: int | None = None
    ) -> None:
        ids = tuple(block.encode() if isinstance(block, str) else block)
        self._usage = replace(
            self._usage,
            completion_tokens=self._usage.completion_tokens + len(ids),
            forwards=self._usage.forwards + 2,
            rows_computed=self._usage.rows_computed + 10,
            visible_tokens=self._usage.visible_tokens + 12,
        )
        output = Output(
            request_id=self.request_id,
            token_ids=ids,
            finish_reason=finish,
            usage=self._usage,
            logprobs=said_of(ids, self.submission.sampling),
            stop_id=stop_id,
        )
        self._queue.put_nowait(output)

    def play(self, steps: Sequence[Step]) -> None:
        *blocks, end = steps if isinstance(steps[-1], FinishReason | Exception) else [*steps, FinishReason.LENGTH]
        for block in blocks[:-1]:
            self.put(block)
        if isinstance(end, FinishReason):
            self.put(blocks[-1], end)
        else:
            self.put(blocks[-1])
            self._queue.put_nowait(end)

    def abort(self) -> None:
        self.aborted.set()

    async def __aiter__(self) -> AsyncIterator[Output]:
        while True:
            output = await self._queue.get()
            if isinstance(output, Exception):
                raise output
            yield output
            if output.finish_reason:
                return


class FakeEngine:
    """An EngineLoop that answers each submission from a script, or waits for the test to feed its stream."""

    def __init__(self) -> None:
        self.info = EngineInfo(
            model="/models/fake",
            folder=Path("/models/fake"),
            spec=ModelSpec(
                family="llada", vocab_size=257, mask_id=EOS, eos_ids=frozenset({EOS}), max_model_len=MAX_LEN
            ),
            device="cpu",
            dtype="float32",
            kv_dtype="float32",
            kv_prune=0.0,
            num_parameters=1_000_000,
            weight_bytes=4_000_000,
            kv_tokens=4096,
            kv_bytes=1 << 20,
            page_size=32,
            max_batch_rows=2048,
            max_running_requests=4,
            max_queued_requests=4,
            shares_prefixes=False,
        )
        self.stats = EngineStats(
            running=2,
            waiting=3,
            stalled=1,
            preemptions=6,
            kv_evictions=7,
            kv_tokens_evicted=8,
            kv_pages_freed=9,
            prompt_tokens_looked_up=90,
            prompt_tokens_found=64,
            kv_pages_used=5,
            kv_pages_total=128,
            kv_pages_kept=9,
            relay_pages=7,
            relay_tokens={"adopted": 40, "recomputed": 6, "missed": 11},
            forwards=70,
            rows_computed=1100,
            finished={FinishReason.STOP: 19},
            rejected=23,
            decoding=Tally().read(),
        )
        self.heartbeat_age = 0.25
        self.healthy = True
        self.accepting = True
        self.died = False
        self.script: Script | None = lambda _: ["one ", "two"]
        self.play: Callable[[FakeStream], None] | None = None
        """For what a script cannot say."""
        self.places = 8
        self.can_fill = True
        self.streams: list[FakeStream] = []
        self.submitted = asyncio.Event()

    @property
    def num_waiting(self) -> int:
        return self.stats.waiting

    def start(self) -> None:
        self.accepting = True

    async def stop(self, drain_seconds: float) -> None:
        self.accepting = False

    def submit(self, submissions: Sequence[Submission]) -> list[FakeStream]:
        return self.enqueue(self.prepare(submissions))

    def prepare(self, submissions: Sequence[Submission]) -> Sequence[Submission]:
        for submission in submissions:
            self._check(submission)
        return submissions

    def enqueue(self, submissions: Sequence[Submission]) -> list[FakeStream]:
        if not self.accepting:
            raise EngineUnavailable("not accepting requests")
        if len(submissions) > self.places:
            raise QueueFull("the queue is full")
        streams = [FakeStream(submission) for submission in submissions]
        self.streams += streams
        for stream in streams:
            allowed = stream.submission.sampling.allowed_ids
            if self.play:
                self.play(stream)
            elif self.script and stream.submission.holes and allowed and len(allowed) == 1:
                stream.put(tuple(allowed), FinishReason.LENGTH)  # a prompt's token is scored
            elif self.script:
                stream.play(self.script(stream.submission))
        self.submitted.set()
        return streams

    @property
    def submissions(self) -> list[Submission]:
        return [stream.submission for stream in self.streams]

    def _check(self, submission: Submission) -> None:
        if any(id_ > EOS for id_ in submission.sampling.allowed_ids or ()):
            raise InvalidRequest("out of vocabulary", param="allowed_ids")
        if submission.holes and not self.can_fill:
            raise InvalidRequest("this family cannot fill holes", param="holes")
        if not submission.prompt_ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if submission.diffusion.cache not in ("auto", "none", "prefix", "dual"):
            raise InvalidRequest(f"unknown cache {submission.diffusion.cache}", param="diffusion.cache")
        if len(submission.prompt_ids) + submission.sampling.max_tokens > MAX_LEN:
            raise ContextLengthExceeded("the context is 128 tokens", param="max_tokens")
