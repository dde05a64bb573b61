"""Counts what decoding costs and yields, from each step and each output.

Counts only what is visible inside the engine. Knows plans, scores and outputs, but neither the readers of the counters
nor metric names. Takes microseconds a step: a few integers for each plan, numpy over the tokens of all plans.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from engine.core.histogram import Distribution, Histogram
from engine.core.output import FinishReason, Output
from engine.core.steps.choice import Choice, Rewritten
from engine.core.steps.plan import StepPlan

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STEPS = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0)
TOKENS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
REQUESTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
STEP_TOKENS = (1.0, 8.0, *(2.0**power for power in range(4, 15)))
ROWS = (32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)


class RowKind(StrEnum):
    """Why a row was computed."""

    BLOCK = "block"
    """It belongs to the open block, or carries the logits of its first position."""
    REFRESH = "refresh"
    """It lies outside the open block: its keys and values are computed first, or renewed."""


class Discard(StrEnum):
    """Why a decoded token is in no output."""

    AFTER_STOP = "after_stop"
    """It stands behind the token that ended the answer."""
    OVER_LENGTH = "over_length"
    """It stands behind `max_tokens`, in the last block."""
    DELETED = "deleted"
    """A step deleted it, or one before it inserted so much that it fell out of its block."""
    WITHDRAWN = "withdrawn"
    """Its block was open when the request was aborted or failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingStats:
    """One reading of the counters since the engine's start. The defaults are the values before the first step."""

    denoising_steps: int = 0
    """Steps of requests that decoded tokens: a forward counts once for each request in it."""
    tokens_decoded: int = 0
    """Masks turned into tokens, discarded tokens included."""
    tokens_forced: int = 0
    """Tokens decoded only because each step must decode one: none met the policy's criterion."""
    tokens_edited: int = 0
    """Decoded tokens that were replaced by others."""
    tokens_discarded: Mapping[Discard, int]
    rows: Mapping[RowKind, int]
    """Positions computed."""
    cache_lookups: int = 0
    """Positions whose keys and values a step's rows attended to."""
    cache_hits: int = 0
    """Lookups of positions that the step did not compute anew."""
    full_refreshes: int = 0
    """Steps that computed every visible position of a request's canvas."""
    kv_page_seconds: float = 0.0
    """Sum over steps of pages held times the step's seconds. Its rate is the mean number of pages held."""
    blocks: int = 0
    """Blocks completed."""
    block_positions: int = 0
    """Sum of the completed blocks' lengths."""
    open_block_positions: int = 0
    """Sum of the open block's length over all denoising steps."""
    steps_per_block: Distribution
    tokens_per_forward: Distribution
    """Tokens that one request gained from one forward."""
    confidence: Distribution
    """Probabilities of decoded tokens, as their unmask policy saw them."""
    batch_requests: Distribution
    """Requests in one forward."""
    batch_rows: Distribution
    """Rows of one forward."""
    step_tokens: Distribution
    """Tokens of one step: those that it decoded, and the prompts of requests whose first step it was."""
    forward_seconds: Distribution
    """Seconds of a step from the finished batch until its scores are on the host."""
    device_seconds: Distribution
    """Of these, seconds by the device's own clock. Where they are fewer, the device waits for the host to launch."""
    host_seconds: Distribution
    """All other seconds of a step: scheduling, building the batch, choosing tokens, counting."""


class Tally:
    """The counters behind a `DecodingStats`. One thread writes; a reading may be taken from another at any time."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._rows = Counter(dict.fromkeys(RowKind, 0))
        self._discarded = Counter(dict.fromkeys(Discard, 0))
        self._open: dict[str, _Account] = {}
        """By request id: requests that have taken part in a step and have not ended."""
        self._steps_per_block = Histogram(STEPS)
        self._tokens_per_forward = Histogram(TOKENS)
        self._confidence = Histogram(CONFIDENCE)
        self._batch_requests = Histogram(REQUESTS)
        self._batch_rows = Histogram(ROWS)
        self._step_tokens = Histogram(STEP_TOKENS)
        self._forward_seconds = Histogram(SECONDS)
        self._device_seconds = Histogram(SECONDS)
        self._host_seconds = Histogram(SECONDS)
        self._forward = self._on_device = 0.0
        self._pages_held = 0
        self._kv_page_seconds = 0.0

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Times device work, which must end with a synchronisation. Several forwards of one step add up."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._forward += time.perf_counter() - begun

    def on_device(self, seconds: float) -> None:
        """Adds what the device's own clock says of a `forward`."""
        self._on_device += seconds

    @contextmanager
    def step(self) -> Iterator[None]:
        """Times a whole step with its `forward` in it."""
        begun, self._pages_held = time.perf_counter(), 0
        self._forward = self._on_device = 0.0
        yield
        seconds = time.perf_counter() - begun
        if self._forward:  # else no request had a plan
            self._forward_seconds.add([self._forward])
            self._device_seconds.add([self._on_device])
            self._host_seconds.add([seconds - self._forward])
            self._kv_page_seconds += self._pages_held * seconds

    def scheduled(self, pages_held: int) -> None:
        """Sets how many KV pages all requests hold in the step under way."""
        self._pages_held = pages_held

    def chosen(self, choices: Sequence[Choice]) -> None:
        """Counts what a step computed and chose. Call it before the scheduler commits the choices."""
        if not choices:
            return
        kept = [choice for choice in choices if not choice.plan.is_draft]
        taken = sum(int(np.count_nonzero(choice.chosen)) for choice in kept)
        gains = [_gained(choice) for choice in choices]
        rows = [len(choice.plan.rows) for choice in choices]
        in_block = needed = full = open_positions = prompts = denoising_steps = 0
        for choice, gain, num_rows in zip(choices, gains, rows, strict=True):
            plan = choice.plan
            request = plan.request
            block = request.block
            end = int(plan.horizons[-1])
            if request.kept_counts is not None:
                end = request.num_kept_before(end)
            needed += end
            full += num_rows == end
            in_block += _rows_in_block(plan)
            if decodes := bool(len(plan.targets)):
                open_positions += block.end - block.start
            denoising_steps += decodes
            if (account := self._open.get(request.id)) is None:
                account = self._open[request.id] = _Account()
                prompts += request.num_prompt_tokens
            deleted = 0 if choice.rewritten is None else _deleted(choice, choice.rewritten, gain)
            self._discarded[Discard.DELETED] += deleted
            account.decoded += gain - deleted
            account.steps += decodes
            account.block_length = gain if block.is_drafted else block.end - block.start
        counts, num_rows = self._counts, sum(rows)
        counts["denoising_steps"] += denoising_steps
        counts["tokens_decoded"] += sum(gains)
        counts["tokens_edited"] += taken - sum(gains)
        counts["tokens_forced"] += sum(choice.is_forced for choice in choices)
        counts["cache_lookups"] += needed
        counts["cache_hits"] += needed - num_rows
        counts["full_refreshes"] += full
        counts["open_block_positions"] += open_positions
        self._rows[RowKind.BLOCK] += in_block
        self._rows[RowKind.REFRESH] += num_rows - in_block
        self._confidence.add(np.concatenate([[], *(choice.scores.confidence[choice.chosen] for choice in kept)]))
        self._tokens_per_forward.add([gain for gain in gains if gain])
        self._batch_requests.add([len(choices)])
        self._batch_rows.add([num_rows])
        self._step_tokens.add([sum(gains) + prompts])

    def settled(self, num_rows: int) -> None:
        """Counts the rows of plans that belong to no request any more."""
        self._rows[RowKind.REFRESH] += num_rows

    def completed(self, outputs: Iterable[Output]) -> None:
        """Counts completed blocks, and requests that ended, aborted and failed ones included. Pass each end once."""
        for output in outputs:
            if (account := self._open.get(output.request_id)) is None:
                continue  # it never ran
            if output.finish_reason not in (FinishReason.ABORT, FinishReason.ERROR):
                self._steps_per_block.add([account.steps])
                self._counts["blocks"] += 1
                self._counts["block_positions"] += account.block_length
            account.steps = 0
            if output.finish_reason:
                del self._open[output.request_id]
                self._discard(output, account.decoded - output.usage.completion_tokens)

    def _discard(self, output: Output, surplus: int) -> None:
        match output.finish_reason:
            case FinishReason.STOP:
                self._discarded[Discard.AFTER_STOP] += surplus - 1  # the stop token itself does not count as discarded
            case FinishReason.LENGTH:
                self._discarded[Discard.OVER_LENGTH] += surplus
            case _:
                self._discarded[Discard.WITHDRAWN] += surplus

    def read(self) -> DecodingStats:
        return DecodingStats(
            **self._counts,
            kv_page_seconds=self._kv_page_seconds,
            rows=dict(self._rows),
            tokens_discarded=dict(self._discarded),
            steps_per_block=self._steps_per_block.read(),
            tokens_per_forward=self._tokens_per_forward.read(),
            confidence=self._confidence.read(),
            batch_requests=self._batch_requests.read(),
            batch_rows=self._batch_rows.read(),
            step_tokens=self._step_tokens.read(),
            forward_seconds=self._forward_seconds.read(),
            device_seconds=self._device_seconds.read(),
            host_seconds=self._host_seconds.read(),
        )


@dataclass(slots=True)
class _Account:
    """What one request has done so far."""

    decoded: int = 0
    steps: int = 0
    """Steps in its open block."""
    block_length: int = 0


def _gained(choice: Choice) -> int:
    """How many tokens the answer has more: drafts are none yet, nor are tokens that replace others."""
    plan, chosen = choice.plan, choice.chosen
    if plan.is_draft:
        return 0
    if not plan.request.block.replaces_tokens:
        return int(np.count_nonzero(chosen))
    written = choice.rewritten.sources[chosen] if choice.rewritten else chosen
    return int(np.count_nonzero(plan.request.masked[plan.targets[written]]))


def _deleted(choice: Choice, rewritten: Rewritten, gain: int) -> int:
    """How many tokens are gone, of those that stood and those gained."""
    stood = np.count_nonzero(~choice.plan.request.masked[choice.plan.targets])
    return int(stood + gain - np.count_nonzero(~rewritten.masked))


def _rows_in_block(plan: StepPlan) -> int:
    """Number of rows, which ascend, from the one with the logits of the block's first position to the block's end."""
    rows, block = plan.rows, plan.request.block
    start = max(min(block.rows_start, block.start - max(plan.request.spec.shift, plan.is_causal)), 0)
    if rows[0] >= start and rows[-1] < block.end:
        return len(rows)
    first, last = np.searchsorted(rows, (start, block.end))
    return int(last - first)
