"""The batching engine, one step at a time: token ids in, blocks of token ids out.

Knows requests, the scheduler and the runner, but no threads (see `engine.loop`), no text and no HTTP.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.core.config import ModelSpec, Quantization
from engine.core.errors import DeviceLost, InvalidRequest
from engine.core.output import FinishReason, Output, TracedStep
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.core.steps.choice import Choice
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Scores
from engine.execution.choices import enter_device
from engine.execution.isolate import choose, in_halves
from engine.execution.relay import carry_out
from engine.execution.runner import Runner
from engine.execution.step import prepare
from engine.scheduling.checks.submission import check
from engine.scheduling.faults import report
from engine.scheduling.pages import PagePool
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.tally import DecodingStats, Tally
from engine.scoring.constrained.tables import TableStore
from engine.unmask.policies import effective, needs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What was loaded, as the start-up banner and `/v1/models` show it."""

    model: str
    folder: Path
    spec: ModelSpec
    """With the `max_model_len` of this engine, which may be lower than the model's own."""
    device: str
    """As torch spells it: `cpu`, `cuda:0`."""
    dtype: str
    """Of the weights, as torch spells it: `float32`. Of those that are codes, what they are computed in."""
    kv_dtype: str
    """What the KV pool stores: `int8`, `fp8`, or the weights' dtype."""
    kv_prune: float
    """As in `EngineConfig`."""
    num_parameters: int
    weight_bytes: int
    kv_tokens: int
    """Capacity of the KV pool, in tokens."""
    kv_bytes: int
    """Of the pool's keys and values, and of what positions carry beside their tokens."""
    page_size: int
    """Tokens of a page."""
    max_batch_rows: int
    """Rows of one forward."""
    max_running_requests: int
    max_queued_requests: int
    shares_prefixes: bool
    """Whether requests share keys and values of equal tokens that they begin with."""
    quantization: Quantization = "none"
    """As in `EngineConfig`."""
    relay_tokens: int = 0
    """Tokens of ended requests that are kept for those that name them, at most; 0 too where the model's cannot be."""

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus canvas, in tokens."""
        return self.spec.max_model_len


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """One reading of every gauge and counter. Counters run from the engine's start."""

    running: int
    """Requests that hold pages."""
    waiting: int
    """Requests accepted and not yet running."""
    stalled: int
    """Running requests that wait for KV pages for their open block."""
    preemptions: int
    """How often a running request had to give its pages back, to get them again later."""
    kv_pages_used: int
    kv_pages_total: int
    kv_pages_kept: int
    """Pages that nobody holds, and that still have keys and values for requests that begin with the same tokens."""
    prompt_tokens_looked_up: int
    """Prompt tokens of admitted requests whose keys and values other requests might have computed."""
    prompt_tokens_found: int
    """Those whose keys and values another request had computed."""
    kv_evictions: int
    """How often requests that keep only so many keys and values gave some up."""
    kv_tokens_evicted: int
    """Tokens whose keys and values they gave up."""
    kv_pages_freed: int
    """Pages that they gave back for it."""
    relay_pages: int
    """Pages that hold ended requests for those that name them; they count as free where nobody runs in them."""
    relay_tokens: Mapping[str, int]
    """Prompt tokens of requests that name others: `adopted` from these, `recomputed` of those, and `missed` by them."""
    forwards: int
    """Model forwards, each for a whole batch."""
    rows_computed: int
    """Positions whose hidden states were computed."""
    finished: Mapping[FinishReason, int]
    rejected: int
    """Requests refused because the queue was full."""
    decoding: DecodingStats
    """What the steps have cost and yielded."""


class Engine:
    """Serves many requests with one model. Not thread-safe: one thread submits, steps and aborts.

    Only `new_request` may be called from any thread: it reads only state that never changes.
    """

    def __init__(self, runner: Runner, info: EngineInfo) -> None:
        self.runner = runner
        self.info = info
        self.scheduler = Scheduler(
            PagePool(info.kv_tokens // info.page_size, info.page_size),
            max_batch_rows=info.max_batch_rows,
            max_running=info.max_running_requests,
            shares_prefixes=info.shares_prefixes,
            relay_tokens=info.relay_tokens,
        )
        self._tables = TableStore(runner.device)
        self._forwards = self._rows_computed = 0
        self._finished = Counter(dict.fromkeys(FinishReason, 0))
        self.tally = Tally()
        self._meanwhile: Callable[[], None] = lambda: None

    @property
    def is_async(self) -> bool:
        """Whether the host has time while the device computes: a CPU is both."""
        return self.runner.device.type == "cuda"

    def new_request(self, submission: Submission) -> Request:
        """Makes a request that can be served. Raises InvalidRequest with the name of the field at fault."""
        submission = effective(submission)
        check(submission, self.info.spec, self.info.max_batch_rows)
        return Request.new(submission, self.info.spec)

    def enter_thread(self) -> None:
        """Call it on the thread that steps, before the first step."""
        enter_device(self.runner.device)

    def check(self) -> None:
        """Raises DeviceLost if the engine cannot compute any more, and knows it without a step."""
        self.runner.check()

    def submit(self, request: Request) -> None:
        """Queues a request made by `new_request`. Raises InvalidRequest if the engine has another with its id."""
        if request.id in self.request_ids:
            raise InvalidRequest(f"A request with the id {request.id!r} is here already.", "request_id")
        self.scheduler.add(request)

    def recover(self) -> None:
        """After a step that raised: forgets what no request waits for, so that the next one does something else."""
        self.scheduler.relay.drop_pending()

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> Output | None:
        """Ends a request now and frees its pages. Returns its last output, or None if it has ended already."""
        output = self.scheduler.abort(request_id, reason)
        if output:
            self._finished[reason] += 1
            self.tally.completed([output])
        return output

    @torch.inference_mode()
    def step(self, meanwhile: Callable[[], None] = lambda: None) -> list[Output]:
        """Runs one step. Returns the blocks that it completed and the last outputs of requests that failed.

        Calls `meanwhile` each time that the device has work and the host has none. It may submit requests, but not
        abort any. Raises DeviceLost if the device itself has failed.
        """
        self._meanwhile = meanwhile
        with self.tally.step():
            plans = self._schedule()
            plans, scores = self._settle(*self._score(plans))
            choices = self._choose(plans, scores)
            outputs = self._commit(choices)
        return [*outputs, *self._fail()]

    def take_traced(self) -> list[TracedStep]:
        """What the last step did to requests that are watched, once; nobody has to ask."""
        return self.scheduler.take_traced()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything: there are requests, or one that has ended is not ready to be named."""
        return bool(self.request_ids) or self.scheduler.relay.is_pending

    @property
    def request_ids(self) -> list[str]:
        """Ids of all requests, running or waiting."""
        return [request.id for request in (*self.scheduler.running, *self.scheduler.waiting)]

    def stats(self, *, incoming: int = 0, rejected: int = 0) -> EngineStats:
        """One reading. The caller adds the requests that it holds before `submit` and those that it has refused."""
        pool = self.scheduler.pool
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting) + incoming,
            stalled=self.scheduler.num_stalled,
            preemptions=self.scheduler.num_preemptions,
            kv_pages_used=pool.num_used,
            kv_pages_total=pool.num_pages,
            kv_pages_kept=pool.num_kept,
            prompt_tokens_looked_up=self.scheduler.residency.num_looked_up,
            prompt_tokens_found=self.scheduler.residency.num_found,
            kv_evictions=self.scheduler.residency.num_evictions,
            kv_tokens_evicted=self.scheduler.residency.num_evicted,
            kv_pages_freed=self.scheduler.residency.num_freed,
            relay_pages=pool.num_relayed,
            relay_tokens=dict(self.scheduler.relay.counts),
            forwards=self._forwards,
            rows_computed=self._rows_computed,
            finished=dict(self._finished),
            rejected=rejected,
            decoding=self.tally.read(),
        )

    def _schedule(self) -> list[StepPlan]:
        plans = self.scheduler.schedule()
        self.tally.scheduled(self.scheduler.pool.num_used)
        return self._take_over(plans)

    def _take_over(self, plans: Sequence[StepPlan]) -> list[StepPlan]:
        """Moves what requests take over from others. Returns the plans without those of requests where that failed:

        these have all of their rows in the next step.
        """
        failed: set[str] = set()
        for move in self.scheduler.relay.take_moves():
            try:
                carry_out(self.runner, move)
            except DeviceLost:
                raise
            except Exception:  # whatever the device raises, such as that its memory is short: it can do without
                logger.warning("%s takes over nothing: it could not be moved", move.request.id, exc_info=True)
                self.scheduler.relay.give_up(move.request)
                failed.add(move.request.id)
        return [plan for plan in plans if plan.request.id not in failed]

    def _score(self, plans: Sequence[StepPlan]) -> tuple[list[StepPlan], list[Scores]]:
        """The plans that could be computed, and their scores: in one forward, or in several where one fails."""
        scheduler = self.scheduler
        return in_halves(
            plans, self._forward_and_score, scheduler.faults, scheduler.lower_budget, scheduler.is_divisible
        )

    def _settle(self, plans: Sequence[StepPlan], scores: Sequence[Scores]) -> tuple[list[StepPlan], list[Scores]]:
        """Without the plans that nobody waits for an answer to."""
        plans, scores, num_rows = self.scheduler.relay.settle(plans, scores)
        self.tally.settled(num_rows)
        return plans, scores

    def _choose(self, plans: Sequence[StepPlan], scores: Sequence[Scores]) -> list[Choice]:
        """Without the choices that failed."""
        choices = choose(plans, scores, self.scheduler.faults)
        self.tally.chosen(choices)
        return choices

    def _commit(self, choices: Sequence[Choice]) -> list[Output]:
        outputs = self.scheduler.commit(choices)
        if moves := self.scheduler.take_moves():
            sources, destinations = zip(*moves, strict=True)
            self.runner.move(np.concatenate(sources), np.concatenate(destinations))
        self._finished.update(output.finish_reason for output in outputs if output.finish_reason)
        self.tally.completed(outputs)
        return outputs

    def _forward_and_score(self, plans: Sequence[StepPlan]) -> list[Scores]:
        """One forward of these plans, and its scoring: the only expensive part of a step."""
        step = prepare(
            plans,
            needs(plans),
            mask_id=self.info.spec.mask_id,
            page_size=self.info.page_size,
            dump=self.runner.pool.dump,
            device=self.runner.device,
            graphs=self.runner.graphs,
            tables=self._tables,
        )
        with self.tally.forward():
            step.launch(self.runner)
            self._meanwhile()
            scores = step.read()
        self.tally.on_device(step.device_seconds)
        self._forwards += 1
        self._rows_computed += sum(len(plan.rows) for plan in plans)
        return scores

    def _fail(self) -> list[Output]:
        """Ends the requests that failed in this step."""
        faults = self.scheduler.faults.take()
        report(faults)
        outputs = []
        for fault in faults:
            if fault.request in self.scheduler.running:
                self.runner.clear(self.scheduler.withdraw(fault.request))
            elif len(spoilt := self.scheduler.relay.fail(fault.request)):
                self.runner.clear(spoilt)
            # One after the other: of requests that share pages, the last one clears them.
            if output := self.abort(fault.request.id, FinishReason.ERROR):
                outputs.append(output)
        return outputs
