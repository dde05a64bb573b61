"""Which requests run, with which rows: admission, a row budget per step, the blocks that a step completes.

With `residency`, `relay` and `writing` the only writer of `Request`. Sees plans and host arrays, never tensors. A
request's cache policy decides which rows it wants, `residency` which pages it holds.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.cache.eviction import survivors, within_budget
from engine.cache.policies import CACHES
from engine.core.arrays import Ids
from engine.core.output import FinishReason, Output, TracedStep
from engine.core.requests.request import Request
from engine.core.steps.choice import Choice
from engine.core.steps.plan import StepPlan
from engine.scheduling.faults import Faults
from engine.scheduling.pages import PagePool
from engine.scheduling.relay.sources import Relay, without_spared
from engine.scheduling.residency import Residency
from engine.scheduling.trace import traced
from engine.scheduling.writing import first_stop, open_block, write
from engine.unmask.policies import UNMASKS

OLDEST_FIRST_EVERY = 8
"""Every `OLDEST_FIRST_EVERY` steps the plan that was passed over longest goes first, in all others the smallest."""

SPARING_STEPS = 256
"""Steps for which a lowered row budget holds; then the full one is tried again."""


class Scheduler:
    """Continuous batching: a request joins and leaves at any step.

    Requests are admitted in order of arrival and take pages as their blocks open (`Residency`). While a running request
    waits for pages, none is admitted. Each step takes as many plans as the row budget holds, smallest first: so the
    blocks of short requests share a forward with the refreshes of long ones. Every `OLDEST_FIRST_EVERY` steps it takes
    the oldest first, so that large plans do not starve. Rows that are left go to a part of a plan that can be cut.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        max_batch_rows: int,
        max_running: int,
        shares_prefixes: bool = False,
        relay_tokens: int = 0,
    ) -> None:
        self.pool = pool
        self.max_batch_rows = max_batch_rows
        self.max_running = max_running
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        """Those passed over longest come first."""
        self.residency = Residency(pool, shares_prefixes=shares_prefixes)
        self.relay = Relay(pool, relay_tokens, shares_prefixes=shares_prefixes)
        self.num_stalled = 0
        """Running requests that had to wait for pages of their open block in the last step."""
        self.num_preemptions = 0
        """How often a request had to give its pages back."""
        self.faults = Faults()
        """Faults of requests whose policies raised. The caller takes them and aborts these requests."""
        self._traced: list[TracedStep] = []
        self._moves: list[tuple[Ids, Ids]] = []
        self._step = self._arrivals = 0
        self._lowered_rows, self._lowered_until = max_batch_rows, 0

    def add(self, request: Request) -> None:
        """Queues a request and opens its first block. `Engine` checks that it fits an empty pool and the row budget."""
        self._arrivals += 1
        request.arrival = self._arrivals
        self.waiting.append(request)
        with self.faults.of(request):
            open_block(request, 0, request.first_block_start)

    def abort(self, request_id: str, reason: FinishReason) -> Output | None:
        """Ends a request now and frees its pages. Returns its last output, or None if it is not queued or running."""
        for queue in (self.waiting, self.running):
            for request in queue:
                if request.id == request_id:
                    queue.remove(request)
                    self.residency.leave(request)
                    return _output(request, (), reason)
        return None

    def lower_budget(self, rows: int) -> None:
        """After memory ran out with `rows` rows: takes at most half as many, or one plan, for `SPARING_STEPS` steps."""
        self._lowered_rows = min(rows // 2, self._row_budget)
        self._lowered_until = self._step + SPARING_STEPS

    def schedule(self) -> list[StepPlan]:
        """Admits what fits and returns this step's plans: at least one if there is any request without a fault."""
        stalled = self._grow()
        self.num_stalled = len(stalled)
        if not stalled:
            self._admit()
        plans: list[StepPlan] = []
        awaited: set[str] = set()
        for request in self.running:
            if request not in self.faults and request not in stalled:
                with self.faults.of(request):
                    self.residency.catch_up(request)
                    if request.relay_from and (first := self.relay.awaits(request)):
                        plans += [first] * (first.request.id not in awaited)
                        awaited.add(first.request.id)
                        continue
                    policy = CACHES[request.diffusion.cache]
                    plan = policy.plan(request)
                    if request.diffusion.kv_budget is not None:
                        plan = within_budget(plan, policy, request.diffusion.kv_budget)
                    plans.append(without_spared(plan) if request.runs else plan)
        self._step += 1
        if self._step % OLDEST_FIRST_EVERY:
            plans.sort(key=lambda plan: len(plan.rows))
        chosen = self._within_budget(self.residency.without_repeats(plans))
        served = {plan.request.id for plan in chosen}
        self.running.sort(key=lambda request: request.id in served)
        return chosen + self.relay.commits(chosen, self._row_budget)

    def commit(self, choices: Sequence[Choice]) -> list[Output]:
        """Writes the chosen tokens and releases finished requests. Returns the blocks that this completed."""
        outputs, self._traced = list[Output](), []
        for choice in choices:
            request = choice.plan.request
            with self.faults.of(request):
                write(choice)
                if choice.plan.eviction:
                    kept = survivors(request, choice.plan.eviction, choice.scores.retention)
                    self._moves.append(self.residency.evict(request, kept, choice.plan.eviction.end))
                self.residency.share(request)
                if request.is_traced:
                    self._traced.append(traced(choice))
                if output := self._close_block(request):
                    outputs.append(output)
        return outputs

    def take_traced(self) -> list[TracedStep]:
        """The last step of watched requests, once."""
        taken, self._traced = self._traced, []
        return taken

    def take_moves(self) -> list[tuple[Ids, Ids]]:
        """Slots to copy, and where to, before the next step: what the last commit evicted left gaps."""
        taken, self._moves = self._moves, []
        return taken

    def is_divisible(self, plan: StepPlan) -> bool:
        """Whether a later step may compute the plan in parts."""
        return CACHES[plan.request.diffusion.cache].cut(plan, len(plan.rows) - 1) is not None

    def withdraw(self, request: Request) -> Ids:
        """Keeps anybody from adopting pages of a request at fault. Returns the slots that only it holds."""
        return self.residency.withdraw(request)

    @property
    def _row_budget(self) -> int:
        return self._lowered_rows if self._step <= self._lowered_until else self.max_batch_rows

    def _within_budget(self, plans: Sequence[StepPlan]) -> list[StepPlan]:
        """The plans that fit, in order, and parts of others in the rows that these leave; always at least one."""
        chosen: list[StepPlan] = []
        rows, budget = 0, self._row_budget
        for plan in plans:
            taken: StepPlan | None = plan
            if rows + len(plan.rows) > budget:
                # A lowered budget may be less than a block, which is the least that can be computed.
                room = budget - rows if chosen else max(budget, plan.request.block_length)
                taken = CACHES[plan.request.diffusion.cache].cut(plan, room) or (None if chosen else plan)
            if taken:
                chosen.append(taken)
                rows += len(taken.rows)
        return chosen

    def _grow(self) -> list[Request]:
        """Takes the pages that open blocks lack, for the oldest requests first. Returns requests that get none now."""
        lacking = [request for request in self.running if self.residency.lacks(request)]
        stalled = []
        for request in sorted(lacking, key=lambda request: request.arrival):
            if request not in self.running:
                continue  # it has just been preempted
            if not self.residency.grow(request, self.running):
                for victim in (victims := self._who_gives_way(request)):
                    self._preempt(victim)
                if not victims or not self.residency.grow(request, self.running):
                    stalled.append(request)
        return stalled

    def _who_gives_way(self, request: Request) -> list[Request]:
        """The youngest requests whose pages are enough for this one; none if those of all together are not.

        They came after it, and can resume as if they had never stopped.
        """
        younger = [
            other
            for other in self.running
            if other.arrival > request.arrival and other.spec.is_block_causal and not other.block.step
        ]
        younger.sort(key=lambda other: -other.arrival)
        needed = self.residency.missing(request) - self.pool.num_free
        for count in range(1, len(younger) + 1):
            if self.residency.freed_by(younger[:count]) >= needed:
                return younger[:count]
        return []

    def _preempt(self, request: Request) -> None:
        """Back to the queue, with its tokens and without its pages."""
        self.num_preemptions += 1
        self.running.remove(request)
        self.residency.leave(request)
        request.is_preempted = True
        self.waiting = deque(sorted((request, *self.waiting), key=lambda waiting: waiting.arrival))

    def _admit(self) -> None:
        """Moves waiting requests that fit to `running`, in order of arrival."""
        while self.waiting and len(self.running) < self.max_running:
            request = self.waiting[0]
            if request.relay_from:
                with self.faults.of(request):
                    self.relay.match(request)
                if request in self.faults:
                    return
            if not self.residency.enter(request, self.running):
                return
            self.waiting.popleft()
            if request.admitted_at is None:
                request.admitted_at = time.monotonic()
            self.running.append(request)

    def _close_block(self, request: Request) -> Output | None:
        """The open block as an `Output` if nothing before the answer's end is masked, else None."""
        block = request.block
        limit = min(block.end, request.output_end)
        end = first_stop(request, block.start, limit)
        if request.masked[block.start : end].any() or not UNMASKS[request.diffusion.unmask].is_done(request):
            return None
        filled = request.answer_positions[slice(*np.searchsorted(request.answer_positions, (block.start, end)))]
        request.completion_tokens += len(filled)
        reason = FinishReason.STOP if end < limit else FinishReason.LENGTH if limit == request.output_end else None
        if request.constraint and reason is not FinishReason.STOP:
            request.state = request.constraint.advanced(request.state, request.ids[filled])
            if reason and request.constraint.accepts[request.state]:
                reason = FinishReason.STOP
        is_asked = request.sampling.logprobs is not None
        output = replace(
            _output(request, tuple(request.ids[filled].tolist()), reason),
            logprobs=tuple(request.logprobs[position] for position in filled.tolist()) if is_asked else None,
            steps=None if request.steps is None else tuple(request.steps[filled].tolist()),
            stop_id=int(request.ids[end]) if end < limit else None,
        )
        if reason and request.relay_as:
            self.relay.keep(request, min(end + 1, limit))  # with the token that ends it, if one does
        # Last, because a request that has left `running` can no longer be failed: all that may raise comes before.
        if reason is None:
            open_block(request, block.index + 1, block.end)
        else:
            self.running.remove(request)
            self.residency.leave(request)
        return output


def _output(request: Request, tokens: tuple[int, ...], reason: FinishReason | None) -> Output:
    return Output(
        request_id=request.id,
        token_ids=tokens,
        finish_reason=reason,
        usage=request.usage,
        admitted_at=request.admitted_at,
    )
