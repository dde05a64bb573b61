"""Growth, sharing and preemption under random use: what a row sees is what its request's own tokens say, always.

The pool is a table that holds, for each slot, what was computed there: the tokens that its keys and values depend on.
"""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.config import ModelSpec
from engine.core.output import FinishReason
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.plan import Choice, Scores
from engine.core.request import Request, Submission
from engine.scheduling.pages import PagePool
from engine.scheduling.safe_state import most_alike_growing
from engine.scheduling.scheduler import Scheduler
from engine.unmask.policies import UNMASKS, select

CONTEXT = 96
FITTING = sorted(name for name, policy in UNMASKS.items() if not policy.cuts_canvas)
PREFIXES = [np.random.default_rng(seed).integers(0, 5, 60).tolist() for seed in range(3)]


def spec(shift=0):
    return ModelSpec(
        family="toy",
        vocab_size=50,
        mask_id=49,
        eos_ids=frozenset({48}),
        max_model_len=CONTEXT,
        attention="block_causal",
        block_length=4,
        shift=shift,
        strict_threshold=True,
    )


def submission(name, prompt, max_tokens=16, salt="", **diffusion):
    return Submission(
        request_id=str(name),
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, seed=7, ignore_eos=True),
        diffusion=DiffusionParams(**diffusion),
        cache_salt=salt,
    )


class Simulated:
    """A scheduler and a pool whose slots remember what they hold."""

    def __init__(self, pages, page_size, *, max_batch_rows=64, max_running=8, shares_prefixes=True):
        self.pool = PagePool(pages, page_size)
        self.scheduler = Scheduler(
            self.pool, max_batch_rows=max_batch_rows, max_running=max_running, shares_prefixes=shares_prefixes
        )
        self.holds = {}
        self.rows = 0

    def final(self, request, position):
        """What the keys and values at a position of a decoded block depend on."""
        length = request.block_length
        return length, request.cache_salt, request.ids[: (position // length + 1) * length].tobytes()

    def step(self):
        plans = self.scheduler.schedule()
        for plan in plans:
            self.compute(plan)
        choices = []
        for plan in plans:
            # A pure function of request and position, as a model's answer is.
            noise = np.random.default_rng([len(plan.request.ids), *plan.targets.tolist()])
            count = len(plan.targets)
            scores = Scores(
                plan.targets, plan.targets % 47, noise.normal(size=count), noise.random(count), noise.random(count)
            )
            choices.append(Choice(plan, scores, select(plan, scores)))
        return plans, self.scheduler.commit(choices)

    def compute(self, plan):
        request, start = plan.request, plan.request.block.start
        self.rows += len(plan.rows)
        for row in plan.rows.tolist():
            if row >= request.committed:
                slot = int(request.slots[row])
                page = slot // self.pool.page_size
                holders = [live.id for live in self.scheduler.running if page in live.pages]
                assert holders == [request.id], "a page is written that is shared, or nobody's"
                assert page not in self.pool._key_of, "a page is written that others may adopt"
                self.holds[slot] = self.final(request, row) if row < start else "open"
        for row, horizon in zip(plan.rows.tolist(), plan.horizons.tolist(), strict=True):
            assert horizon == min((row // request.block_length + 1) * request.block_length, request.block.end)
            for position in range(min(horizon, start)):
                held = self.holds.get(int(request.slots[position]))
                assert held == self.final(request, position), "a row sees what is not its request's, or not final"
            if horizon > start and not plan.request.block.is_computed:
                assert set(range(start, horizon)) <= set(plan.rows.tolist()), "a row sees what was never computed"


class Crowd(RuleBasedStateMachine):
    @initialize(
        page_size=st.sampled_from([4, 6, 8, 32]),
        spare=st.integers(0, 12),
        rows=st.integers(32, 100),
        running=st.integers(1, 6),
        shares=st.booleans(),
        shift=st.sampled_from([0, 1]),
    )
    def start(self, page_size, spare, rows, running, shares, shift):
        pages = -(-CONTEXT // page_size) + spare
        self.world = Simulated(pages, page_size, max_batch_rows=rows, max_running=running, shares_prefixes=shares)
        self.scheduler, self.pool, self.spec = self.world.scheduler, self.world.pool, spec(shift)
        self.live, self.number = {}, 0

    @rule(
        branch=st.sampled_from(PREFIXES),
        fork=st.integers(0, 60),
        prompt=st.integers(1, 60),
        max_tokens=st.integers(1, 40),
        salt=st.sampled_from(["", "", "", "other"]),
        block_length=st.sampled_from([None, 1, 4, 8, 12, 32]),
        cache=st.sampled_from(["block", "sub_block"]),
        sub=st.sampled_from([None, 1, 2, 4]),
        unmask=st.sampled_from(FITTING),
        threshold=st.floats(0, 1),
        denoising_steps=st.none() | st.integers(1, 8),
    )
    def submit(self, branch, fork, prompt, max_tokens, salt, sub, **diffusion):
        if sub and (diffusion["block_length"] or 4) % sub == 0:
            diffusion["sub_block_length"] = sub
        self.number += 1
        max_tokens = min(max_tokens, CONTEXT - prompt)
        ids = [*PREFIXES[0][:fork], *branch[fork:]][:prompt]
        new = Request.new(submission(self.number, ids, max_tokens, salt, **diffusion), self.spec)
        self.scheduler.add(new)
        self.live[new.id] = new

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        assert self.scheduler.abort(request_id, FinishReason.ABORT).finish_reason is FinishReason.ABORT
        del self.live[request_id]

    @rule(rows=st.integers(1, 100))
    def memory_runs_out(self, rows):
        self.scheduler.lower_budget(rows)

    @precondition(lambda self: self.live)
    @rule()
    def step(self):
        before = {request_id: (int(live.masked.sum()), live.committed) for request_id, live in self.live.items()}
        plans, outputs = self.world.step()
        assert not self.scheduler.faults.take()
        assert plans, "requests are here, so somebody's turn it is"
        rows = sum(len(plan.rows) for plan in plans)
        longest = max(plan.request.block_length for plan in plans)
        assert rows <= max(self.scheduler._row_budget, longest) <= self.scheduler.max_batch_rows
        for plan in plans:
            masked, committed = before[plan.request.id]
            progress = plan.request.masked.sum() < masked or plan.request.committed > committed
            assert progress or plan.request.id not in self.live or plan.request.is_preempted
        for output in outputs:
            if output.finish_reason:
                ended = self.live.pop(output.request_id)
                assert output.usage.completion_tokens == ended.sampling.max_tokens

    @invariant()
    def pages_are_conserved(self):
        if not hasattr(self, "world"):
            return
        running = self.scheduler.running
        assert self.pool.num_used == len({page for live in running for page in live.pages})
        assert all(not live.pages for live in self.scheduler.waiting)
        assert {r.id for r in running} | {r.id for r in self.scheduler.waiting} == set(self.live)
        arrivals = [waiting.arrival for waiting in self.scheduler.waiting]
        assert arrivals == sorted(arrivals)

    def teardown(self):
        """Whatever happened before: left alone, everyone ends."""
        if hasattr(self, "world"):
            for _ in range(20 * sum(live.canvas_end for live in self.live.values()) + 1):
                if not self.live:
                    break
                self.step()
            assert not self.live
            self.pages_are_conserved()
            assert self.pool.num_free == self.pool.num_pages


TestCrowd = Crowd.TestCase
TestCrowd.settings = settings(max_examples=15, stateful_step_count=40, deadline=None)


def drain(world, requests):
    for request in requests:
        world.scheduler.add(request)
    while world.scheduler.running or world.scheduler.waiting:
        world.step()
    return [request.decoded_tokens.tolist() for request in requests]


def crowd(count, prompt, **own):
    return [Request.new(submission(number, prompt, **own), spec()) for number in range(count)]


@pytest.mark.parametrize("max_batch_rows", [1000, 64, 20])
def test_a_common_prefix_is_computed_once_though_all_come_at_once(max_batch_rows):
    """Also where the budget is less than the prompt, which then comes in parts."""
    requests = crowd(16, PREFIXES[0][:41], max_tokens=3)
    world = Simulated(200, 8, max_batch_rows=max_batch_rows, max_running=16)
    drain(world, requests)
    common = 40
    assert world.rows == common + 16 * 4 * 3, "and each computes its own block in three steps"
    assert [request.cached_tokens for request in requests] == [0] + [common] * 15, "the oldest computes all of it"
    assert world.scheduler.residency.num_found == 15 * common


def test_requests_of_another_salt_or_another_block_length_share_nothing():
    alike = [{}, {"salt": "other"}, {"block_length": 8}]
    requests = [
        Request.new(submission(number, PREFIXES[0][:40], max_tokens=4, **own), spec())
        for number, own in enumerate(alike)
    ]
    drain(Simulated(200, 8, max_batch_rows=1000), requests)
    assert [request.cached_tokens for request in requests] == [0, 0, 0]


def test_a_second_turn_finds_the_first_ones_prompt_and_answer():
    world = Simulated(40, 4, max_batch_rows=1000)
    [first] = crowd(1, PREFIXES[0][:13], max_tokens=20)
    [answer] = drain(world, [first])
    [second] = crowd(1, PREFIXES[0][:13] + answer[:19] + [1, 2, 3], max_tokens=4)
    world.scheduler.add(second)
    [[plan], _] = world.step()
    assert plan.rows.tolist() == [32, 33, 34, 35], "what the first turn's last block never computed without masks"
    assert second.cached_tokens == 32


def test_the_youngest_gives_way_and_gets_the_same_answer():
    alone = [drain(Simulated(12, 8), crowd(1, PREFIXES[0][:40], max_tokens=40))[0]]
    requests = crowd(3, PREFIXES[0][:40], max_tokens=40)
    world = Simulated(13, 8, shares_prefixes=False)
    assert drain(world, requests) == alone * 3
    assert world.scheduler.num_preemptions
    assert not requests[0].is_preempted, "the oldest never gives way"


def test_a_request_that_resumes_finds_its_pages_if_they_are_still_there():
    world = Simulated(30, 8)
    [request] = crowd(1, PREFIXES[0][:40], max_tokens=40)
    world.scheduler.add(request)
    while request.block.start < 56 or request.block.step:
        world.step()
    world.scheduler._preempt(request)
    rows = world.rows
    world.step()
    assert world.rows - rows <= 8 + 4 + 4, "no more than what its last page lacked, and the open block"
    assert request.cached_tokens == 0, "its own tokens are not another request's"


def test_requests_that_cannot_grow_need_no_room_beside_them():
    world = Simulated(16, 8, max_running=16)
    for request in crowd(16, [1, 2], max_tokens=4):
        world.scheduler.add(request)
    world.step()
    assert len(world.scheduler.running) == 16


@pytest.mark.parametrize(("pages", "prompt", "expected"), [(16, 16, 5), (17, 16, 6), (13, 40, 2)])
def test_as_many_run_at_once_as_the_plan_says(pages, prompt, expected):
    """Each opens with so many pages, and may grow to more: one page stays free for each but the last."""
    world = Simulated(pages, 8, max_batch_rows=1000, max_running=64)
    for request in crowd(16, PREFIXES[0][: prompt - 4], max_tokens=30):
        request.cache_salt = request.id  # they share nothing
        world.scheduler.add(request)
    world.step()
    assert (
        len(world.scheduler.running) == most_alike_growing(pages, -(-prompt // 8), -(-(prompt + 26) // 8)) == expected
    )


def test_nobody_gives_way_where_that_would_not_be_enough():
    world = Simulated(13, 8, max_batch_rows=1000, shares_prefixes=False)
    old, middle, young = (
        Request.new(submission(number, PREFIXES[0][:prompt], max_tokens=tokens), spec())
        for number, (prompt, tokens) in enumerate([(28, 60), (28, 60), (4, 4)])
    )
    for request in (old, middle, young):
        world.scheduler.add(request)
    world.step()
    taken = world.pool.allocate(world.pool.num_free)
    young.block.step, middle.block.step = 0, 1  # one is in the middle of its block
    old.block.visible_end = 64
    old.block.end = 64
    assert world.scheduler._who_gives_way(old) == []
    middle.block.step = 0
    assert world.scheduler._who_gives_way(old) == [young, middle]
    world.pool.release(taken)
