"""Scheduler and pages under random use: pages are conserved, every step makes progress, every request ends."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.config import ModelSpec
from engine.core.output import FinishReason
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.request import Request
from engine.core.requests.submission import Hole, Submission
from engine.core.steps.choice import Choice
from engine.core.steps.scores import Scores
from engine.scheduling.pages import PagePool
from engine.scheduling.safe_state import Claim, is_safe
from engine.scheduling.scheduler import SPARING_STEPS, Scheduler
from engine.unmask.policies import effective, select
from tests.engine.toys import FULL_ATTENTION_CACHES, FULL_ATTENTION_UNMASKS

LONGEST = 96
SPEC = ModelSpec(family="toy", vocab_size=50, mask_id=49, eos_ids=frozenset({48}), max_model_len=LONGEST)


def request(number, prompt_len=4, max_tokens=16, holes=(), **diffusion):
    submission = Submission(
        request_id=f"r{number}",
        prompt_ids=[1] * prompt_len,
        sampling=SamplingParams(max_tokens=max_tokens, seed=number),
        diffusion=DiffusionParams(**{"block_length": 8, **diffusion}),
        holes=tuple(holes),
    )
    return Request.new(effective(submission), SPEC)


def scored(plan, rng):
    """What a model might say: random tokens, the end of the answer among them."""
    count = len(plan.targets)
    importance = rng.random(plan.request.block.visible_end) if plan.rollout else None
    return Scores(
        plan.targets,
        rng.integers(0, 49, count),
        rng.normal(size=count),
        entropy=rng.exponential(size=count),
        margin=rng.random(count),
        importance=importance,
    )


def step(scheduler, rng):
    plans = scheduler.schedule()
    for plan in plans:
        assert plan.rows[-1] < plan.horizons.max() <= len(plan.request.slots), "a row without a slot"
    scores = [scored(plan, rng) for plan in plans]
    choices = [Choice(plan, said, select(plan, said)) for plan, said in zip(plans, scores, strict=True)]
    return plans, scheduler.commit(choices)


def later(request):
    """What its open block does not reach yet."""
    return request.answer_positions[request.answer_positions >= request.block.end]


class Traffic(RuleBasedStateMachine):
    @initialize(
        pages=st.integers(3, 12),
        page_size=st.sampled_from([32, 48]),
        spare=st.integers(0, 60),
        running=st.integers(1, 6),
    )
    def start(self, pages, page_size, spare, running):
        self.scheduler = Scheduler(PagePool(pages, page_size), max_batch_rows=LONGEST + spare, max_running=running)
        self.rng = np.random.default_rng(pages)
        self.live, self.number = {}, 0

    @rule(
        prompt_len=st.integers(1, 40),
        max_tokens=st.integers(1, 50),
        block_length=st.sampled_from([1, 3, 8, 32]),
        cache=st.sampled_from(FULL_ATTENTION_CACHES),
        unmask=st.sampled_from(FULL_ATTENTION_UNMASKS),
        threshold=st.floats(0, 1),
        current_k=st.integers(1, 12),
        rollout_p=st.floats(0, 1),
        inflate_w=st.integers(0, 6),
        min_block_length=st.integers(1, 20),
        lookahead=st.none() | st.integers(0, 40),
        confidence_method=st.sampled_from(["softmax", "entropy"]),
        offsets=st.sets(st.integers(0, 40), max_size=4),
    )
    def submit(self, prompt_len, max_tokens, offsets, **diffusion):
        self.number += 1
        offsets = sorted(offset for offset in offsets if offset <= prompt_len)
        holes = [Hole(offset, 1 + i) for i, offset in enumerate(offsets)]
        max_tokens = sum(hole.length for hole in holes) or max_tokens
        new = request(self.number, prompt_len, max_tokens, holes, **diffusion)
        if new.canvas_end <= LONGEST:
            self.scheduler.add(new)
            self.live[new.id] = new

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        assert self.scheduler.abort(request_id, FinishReason.ABORT).finish_reason is FinishReason.ABORT
        assert self.scheduler.abort(request_id, FinishReason.ABORT) is None
        del self.live[request_id]

    @precondition(lambda self: self.live)
    @rule()
    def step(self):
        masked = {request_id: int(live.masked.sum()) for request_id, live in self.live.items()}
        plans, outputs = step(self.scheduler, self.rng)
        assert plans, "requests are here, so somebody's turn it is"
        assert sum(len(plan.rows) for plan in plans) <= self.scheduler.max_batch_rows
        for plan in plans:
            assert plan.request.masked.sum() < masked[plan.request.id], "a step without progress"
            assert not plan.request.masked[: plan.request.block.start].any(), "a mask is left behind"
            assert plan.request.masked[later(plan.request)].all(), "a token came before its block was open"
        for output in outputs:
            if output.finish_reason:
                ended = self.live.pop(output.request_id)
                filled = output.usage.completion_tokens
                assert filled <= ended.sampling.max_tokens
                assert filled == ended.sampling.max_tokens or ended.stop_ids

    @invariant()
    def pages_are_conserved(self):
        if not hasattr(self, "scheduler"):
            return
        pool, running = self.scheduler.pool, self.scheduler.running
        held = [page for live in running for page in live.pages]
        assert len(held) == len(set(held)), "two requests hold one page"
        assert pool.num_free == pool.num_pages - len(held)
        claims = [Claim(len(live.pages), pool.pages_for(live.canvas_end) - len(live.pages)) for live in running]
        assert is_safe(pool.num_free, claims)
        assert {r.id for r in running} | {r.id for r in self.scheduler.waiting} == set(self.live)

    def teardown(self):
        """Whatever happened before: left alone, everyone ends."""
        if hasattr(self, "scheduler"):
            for _ in range(sum(live.canvas_end for live in self.live.values()) + 1):
                if not self.live:
                    break
                self.step()
            assert not self.live
            self.pages_are_conserved()


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)


class LongTraffic(Traffic):
    """The same, longer and more often."""


TestLongTraffic = pytest.mark.slow(LongTraffic.TestCase)
TestLongTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_short_request_rides_beside_long_refreshes():
    """Eight canvases that fill the budget keep refreshing; a short one's first block may lose two steps to them."""
    rng = np.random.default_rng(0)

    def first_block(scheduler):
        for count in range(1, 100):
            if any(output.request_id == "r99" for output in step(scheduler, rng)[1]):
                return count
        raise AssertionError("the short request starved")

    def scheduler():
        return Scheduler(PagePool(100, 8), max_batch_rows=LONGEST + 16, max_running=16)

    alone = scheduler()
    alone.add(request(99, 4, 8, cache="dual", unmask="fixed"))
    crowded = scheduler()
    for number in range(8):
        crowded.add(request(number, 40, 56, cache="none", unmask="fixed"))
    for _ in range(5):
        step(crowded, rng)
    crowded.add(request(99, 4, 8, cache="dual", unmask="fixed"))
    assert first_block(crowded) <= first_block(alone) + 2


def test_long_refreshes_do_not_starve_beside_short_blocks():
    rng = np.random.default_rng(0)
    scheduler = Scheduler(PagePool(100, 8), max_batch_rows=LONGEST, max_running=16)
    scheduler.add(request(0, 40, 56, cache="none", unmask="fixed"))
    number, steps = 0, 0
    while any(r.id == "r0" for r in (*scheduler.running, *scheduler.waiting)):
        while len(scheduler.running) + len(scheduler.waiting) < 8:
            number += 1
            scheduler.add(request(number, 4, 8, cache="dual", unmask="fixed"))
        step(scheduler, rng)
        steps += 1
        assert steps < 56 * 8 + 8, "oldest first, every eighth step"


def test_a_lowered_budget_holds_one_plan_in_any_case():
    """A canvas that is longer still has its turn, alone, however many short ones there are; later all ride together."""
    scheduler = Scheduler(PagePool(100, 8), max_batch_rows=LONGEST * 3, max_running=16)
    scheduler.add(request(0, 40, 56, cache="none", unmask="fixed"))
    for number in (1, 2):
        scheduler.add(request(number, 4, 32, cache="none", unmask="fixed"))
    scheduler.lower_budget(80)
    scheduler.lower_budget(100)
    assert len(scheduler.running) == 0
    turns = [[plan.request.id for plan in scheduler.schedule()] for _ in range(SPARING_STEPS)]
    assert {len(turn) for turn in turns} == {1}
    assert sum(turn == ["r0"] for turn in turns) >= SPARING_STEPS // 8 - 1
    assert len(scheduler.schedule()) == 3


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "expected", "reason"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 8, (1, 2, 3, 4, 5, 6, 7, 8), FinishReason.LENGTH),
        ([1, 2, 3, 48, 5, 6, 7, 8], 8, (1, 2, 3), FinishReason.STOP),
        ([48, 2, 3, 48, 5, 6, 7, 8], 8, (), FinishReason.STOP),
        ([1, 2, 3, 4, 5, 6, 7, 48], 5, (1, 2, 3, 4, 5), FinishReason.LENGTH),
        ([1, 2, 3, 4, 48, 6, 7, 8], 5, (1, 2, 3, 4), FinishReason.STOP),
        ([1, 2, 3, 4, 5, 6, 7, 8], 9, (1, 2, 3, 4, 5, 6, 7, 8), None),
    ],
)
def test_where_an_answer_ends(tokens, max_tokens, expected, reason):
    scheduler = Scheduler(PagePool(10, 16), max_batch_rows=LONGEST, max_running=4)
    scheduler.add(request(0, 4, max_tokens, unmask="threshold", threshold=0.0))
    [plan] = scheduler.schedule()
    said = Scores(plan.targets, np.array(tokens), np.zeros(8))
    [output] = scheduler.commit([Choice(plan, said, np.ones(8, np.bool_))])
    assert output.token_ids == expected
    assert output.finish_reason is reason
    assert output.usage.completion_tokens == len(expected)
    assert (scheduler.pool.num_free == 10) == (reason is not None)


def test_a_stop_token_of_the_prompt_within_a_block_ends_nothing():
    scheduler = Scheduler(PagePool(10, 16), max_batch_rows=LONGEST, max_running=4)
    asked = request(0, 4, 4, holes=[Hole(2, 2), Hole(3, 2)], unmask="threshold", threshold=0.0)
    asked.ids[4], asked.stop_ids = 48, frozenset({48})  # as in a family whose blocks do not begin behind the prompt
    scheduler.add(asked)
    [plan] = scheduler.schedule()
    assert plan.targets.tolist() == [2, 3, 5, 6]
    said = Scores(plan.targets, np.array([7, 8, 9, 48]), np.zeros(4))
    [output] = scheduler.commit([Choice(plan, said, np.ones(4, np.bool_))])
    assert (output.token_ids, output.finish_reason) == ((7, 8, 9), FinishReason.STOP), "the decoded one does"


def test_a_block_is_over_once_nothing_before_the_end_of_the_answer_is_masked():
    scheduler = Scheduler(PagePool(10, 16), max_batch_rows=LONGEST, max_running=4)
    scheduler.add(request(0, 4, 8))
    [plan] = scheduler.schedule()
    chosen = np.arange(8) == 2
    assert scheduler.commit([Choice(plan, Scores(plan.targets, np.full(8, 48), np.zeros(8)), chosen)]) == []
    [plan] = scheduler.schedule()
    chosen = np.arange(7) < 2
    [output] = scheduler.commit([Choice(plan, Scores(plan.targets, np.full(7, 5), np.zeros(7)), chosen)])
    assert (output.token_ids, output.finish_reason) == ((5, 5), FinishReason.STOP)


def test_a_request_remembers_what_its_steps_said():
    scheduler = Scheduler(PagePool(10, 16), max_batch_rows=LONGEST, max_running=4)
    asked = request(0, 4, 16, cache="d2", block_length=4)
    scheduler.add(asked)
    [plan] = scheduler.schedule()
    assert len(plan.targets) == 16, "d2 scores what is not open yet"
    log_odds, importance = np.linspace(-2.0, 2.0, 16), np.linspace(0.0, 1.0, 20)
    said = Scores(plan.targets, np.arange(16), log_odds, importance=importance)
    scheduler.commit([Choice(plan, said, np.isin(np.arange(16), [1, 3]))])
    history = asked.history
    np.testing.assert_array_equal(history.confidence[4:], said.confidence)
    assert history.mean_confidence == [pytest.approx(said.confidence[:4].mean())], "of the open block alone"
    assert history.decoded.tolist() == [5, 7]
    assert history.tokens == [1, 3]
    [plan] = scheduler.schedule()
    said = Scores(plan.targets, np.full(len(plan.targets), 9), np.full(len(plan.targets), 3.0))
    chosen = np.arange(len(plan.targets)) == 0
    scheduler.commit([Choice(plan, said, chosen)])
    assert (history.confidence[plan.targets] == said.confidence).all()
    np.testing.assert_array_equal(history.importance, importance)
    assert history.tokens == [1, 3, 9]


def test_nobody_is_admitted_before_those_who_wait_for_pages():
    """Two canvases of four pages in a pool of six: the second must wait for its third page, though one is free."""
    rng = np.random.default_rng(0)
    scheduler = Scheduler(PagePool(6, 8), max_batch_rows=LONGEST, max_running=8)
    for number in (1, 2):
        scheduler.add(request(number, 4, 24, unmask="threshold", threshold=0.0, lookahead=0))
        scheduler.waiting[-1].stop_ids = frozenset()
    step(scheduler, rng)
    scheduler.add(request(3, 1, 4, block_length=4, unmask="threshold", threshold=0.0))
    step(scheduler, rng)
    assert [r.id for r in scheduler.waiting] == ["r3"]
    assert (scheduler.num_stalled, scheduler.pool.num_free) == (1, 1)
    step(scheduler, rng)  # the first one's last block
    step(scheduler, rng)
    assert [r.id for r in scheduler.running] == ["r2"], "the second goes on, and the third has come and gone"
    assert not scheduler.waiting


def test_a_request_takes_pages_as_its_blocks_open():
    rng = np.random.default_rng(0)
    scheduler = Scheduler(PagePool(20, 8), max_batch_rows=LONGEST, max_running=8)
    one = request(1, 4, 40, cache="dual", unmask="threshold", threshold=0.0, lookahead=8, min_block_length=8)
    one.stop_ids = frozenset()
    scheduler.add(one)
    held = []
    while scheduler.running or scheduler.waiting:
        scheduler.schedule()
        held.append((one.block.visible_end, len(one.pages)))
        step(scheduler, rng)
    assert held == [(20, 3), (28, 4), (36, 5), (44, 6), (44, 6)]
    assert scheduler.pool.num_free == 20
