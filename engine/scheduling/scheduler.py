"""Which requests run, with which rows: admission by pages, a row budget per step, writing back a step's outcome.

The only writer of `Request`. Sees plans and host arrays, never tensors. A request's cache policy decides which rows it
wants.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.cache.policies import CACHES
from engine.core.output import FinishReason, Output
from engine.core.plan import Choice, StepPlan
from engine.core.request import Block, Request
from engine.scheduling.faults import Faults
from engine.scheduling.pages import PagePool
from engine.scheduling.safe_state import Claim, is_safe
from engine.unmask.policies import UNMASKS

OLDEST_FIRST_EVERY = 8
"""Every `OLDEST_FIRST_EVERY` steps the plan that was passed over longest goes first, in all others the smallest."""

SPARING_STEPS = 256
"""Steps for which a lowered row budget holds; then the full one is tried again."""


class Scheduler:
    """Continuous batching: a request joins and leaves at any step.

    Requests are admitted in order of arrival and take pages as their blocks open, as long as the state stays safe
    (`safe_state`), so that none is ever preempted. While a running request waits for pages, none is admitted. Each step
    takes as many plans as the row budget holds, smallest first: so the blocks of short requests share a forward with
    the refreshes of long ones. Every `OLDEST_FIRST_EVERY` steps it takes the oldest first, so that large plans do not
    starve.
    """

    def __init__(self, pool: PagePool, *, max_batch_rows: int, max_running: int) -> None:
        self.pool = pool
        self.max_batch_rows = max_batch_rows
        self.max_running = max_running
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        """Those passed over longest come first."""
        self.num_stalled = 0
        """Running requests that had to wait for pages of their open block in the last step."""
        self.faults = Faults()
        """Faults of requests whose policies raised. The caller takes them and aborts these requests."""
        self._step = 0
        self._lowered_rows, self._lowered_until = max_batch_rows, 0

    def add(self, request: Request) -> None:
        """Queues a request and opens its first block. `Engine` checks that it fits an empty pool and the row budget."""
        self.waiting.append(request)
        with self.faults.of(request):
            _open_block(request, 0, request.answer_start)

    def abort(self, request_id: str, reason: FinishReason) -> Output | None:
        """Ends a request now and frees its pages. Returns its last output, or None if it is not queued or running."""
        for queue in (self.waiting, self.running):
            for request in queue:
                if request.id == request_id:
                    queue.remove(request)
                    self.pool.release(request.pages)
                    return _output(request, (), reason)
        return None

    def lower_budget(self, rows: int) -> None:
        """After memory ran out with `rows` rows: takes at most half as many, or one plan, for `SPARING_STEPS` steps."""
        self._lowered_rows = min(rows // 2, self._row_budget)
        self._lowered_until = self._step + SPARING_STEPS

    def schedule(self) -> list[StepPlan]:
        """Admits what fits and returns this step's plans: at least one if there is any request without a fault."""
        ready = [request for request in self.running if self._take_pages(request)]
        self.num_stalled = len(self.running) - len(ready)
        if not self.num_stalled:
            ready += self._admit()
        plans: list[StepPlan] = []
        for request in ready:
            if request not in self.faults:
                with self.faults.of(request):
                    plans.append(CACHES[request.diffusion.cache].plan(request))
        self._step += 1
        if self._step % OLDEST_FIRST_EVERY:
            plans.sort(key=lambda plan: len(plan.rows))
        chosen: list[StepPlan] = []
        rows = 0
        for plan in plans:
            if not chosen or rows + len(plan.rows) <= self._row_budget:
                chosen.append(plan)
                rows += len(plan.rows)
        served = {plan.request.id for plan in chosen}
        self.running.sort(key=lambda request: request.id in served)
        return chosen

    def commit(self, choices: Sequence[Choice]) -> list[Output]:
        """Writes the chosen tokens and releases finished requests. Returns the blocks that this completed."""
        outputs = []
        for choice in choices:
            request = choice.plan.request
            with self.faults.of(request):
                _write(choice)
                if output := self._close_block(request):
                    outputs.append(output)
        return outputs

    @property
    def _row_budget(self) -> int:
        return self._lowered_rows if self._step <= self._lowered_until else self.max_batch_rows

    def _admit(self) -> list[Request]:
        """Moves waiting requests that fit to `running`, in order of arrival, and returns them."""
        admitted: list[Request] = []
        while self.waiting and len(self.running) < self.max_running and self._take_pages(self.waiting[0]):
            request = self.waiting.popleft()
            request.admitted_at = time.monotonic()
            self.running.append(request)
            admitted.append(request)
        return admitted

    def _take_pages(self, request: Request) -> bool:
        """Takes the pages that its visible positions lack, if that is safe; returns whether all have a slot."""
        pool = self.pool
        count = pool.pages_for(request.block.visible_end) - len(request.pages)
        if count <= 0:
            return True
        if count > pool.num_free or not self._can_spare(count, request):
            return False
        pages = pool.allocate(count, request.pages)
        assert pages is not None, "fewer free pages than counted; this is a bug"
        request.pages += pages
        request.slots = pool.slots(request.pages, len(request.pages) * pool.page_size)
        return True

    def _can_spare(self, count: int, taker: Request) -> bool:
        """Whether all running requests and the taker could end one after the other if it took `count` pages more."""
        pool = self.pool
        claims = [self._claim(request) for request in self.running if request is not taker]
        held, missing = self._claim(taker)
        return is_safe(pool.num_free - count, [*claims, Claim(held + count, missing - count)])

    def _claim(self, request: Request) -> Claim:
        held = len(request.pages)
        return Claim(held, self.pool.pages_for(request.canvas_end) - held)

    def _close_block(self, request: Request) -> Output | None:
        """The open block as an `Output` if nothing before the answer's end is masked, else None."""
        block = request.block
        limit = min(block.end, request.output_end)
        end = _first_stop(request, block.start, limit)
        if request.masked[block.start : end].any():
            return None
        filled = request.answer_positions[slice(*np.searchsorted(request.answer_positions, (block.start, end)))]
        request.completion_tokens += len(filled)
        reason = FinishReason.STOP if end < limit else FinishReason.LENGTH if limit == request.output_end else None
        is_asked = request.sampling.logprobs is not None
        output = replace(
            _output(request, tuple(request.ids[filled].tolist()), reason),
            logprobs=tuple(request.logprobs[position] for position in filled.tolist()) if is_asked else None,
            stop_id=int(request.ids[end]) if reason is FinishReason.STOP else None,
        )
        # Last, because a request that has left `running` can no longer be failed: all that may raise comes before.
        if reason is None:
            _open_block(request, block.index + 1, block.end)
        else:
            self.running.remove(request)
            self.pool.release(request.pages)
        return output


def _output(request: Request, tokens: tuple[int, ...], reason: FinishReason | None) -> Output:
    return Output(
        request_id=request.id,
        token_ids=tokens,
        finish_reason=reason,
        usage=request.usage,
        admitted_at=request.admitted_at,
    )


def _open_block(request: Request, index: int, start: int) -> None:
    """Opens the first block from `start` on that has masked positions; the unmask policy sets its length."""
    length = UNMASKS[request.diffusion.unmask].block_length(request)
    masked = np.flatnonzero(request.masked[start:])
    start += int(masked[0]) // length * length
    end = min(start + length, request.answer_end)
    fresh, lookahead = request.block.visible_end if index else 0, request.diffusion.lookahead
    request.block = Block.opened(request.masked, start, end, index=index, fresh=fresh, lookahead=lookahead)


def _write(choice: Choice) -> None:
    plan, scores, chosen, _ = choice
    request, positions = plan.request, plan.targets[chosen]
    assert len(positions), "a step that commits nothing; this is a bug of its unmask policy"
    request.ids[positions] = scores.tokens[chosen]
    request.masked[positions] = False
    request.block.step += 1
    request.forwards += 1
    request.rows_computed += len(plan.rows)
    _record(choice)
    if scores.logprobs is not None:
        request.logprobs.update(zip(positions.tolist(), scores.logprobs.of(chosen), strict=True))


def _record(choice: Choice) -> None:
    """Writes scores and choice into the request's history, which its policies read."""
    plan, scores, chosen, _ = choice
    history, confidence = plan.request.history, scores.confidence
    history.confidence[plan.targets] = confidence
    history.mean_confidence.append(float(confidence[: plan.num_open].sum()) / plan.num_open)
    history.decoded = plan.targets[chosen]
    history.tokens.extend(scores.tokens[chosen].tolist())
    if scores.importance is not None:
        history.importance[: len(scores.importance)] = scores.importance


def _first_stop(request: Request, start: int, limit: int) -> int:
    """The first position of the answer in [start, limit) that holds a decoded stop token, else limit.

    A block may hold tokens of the prompt: a stop token among these does not end the answer.
    """
    if request.stop_ids.isdisjoint(request.ids[start:limit].tolist()):
        return limit
    answer = request.answer_positions[slice(*np.searchsorted(request.answer_positions, (start, limit)))]
    decoded = answer[~request.masked[answer]]
    stops = decoded[np.isin(request.ids[decoded], list(request.stop_ids))]
    return int(stops[0]) if len(stops) else limit
