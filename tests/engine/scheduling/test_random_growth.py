"""Growth, sharing and preemption under random use: what a row sees is what its request's own tokens say, always."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.output import FinishReason
from engine.core.requests.request import Request
from engine.unmask.policies import effective
from tests.engine.toys import BLOCK_CAUSAL_UNMASKS

from .simulated import CONTEXT, PREFIXES, Simulated, spec, submission

FITTING = BLOCK_CAUSAL_UNMASKS


class Crowd(RuleBasedStateMachine):
    @initialize(
        page_size=st.sampled_from([4, 6, 8, 32]),
        spare=st.integers(0, 12),
        rows=st.integers(32, 100),
        running=st.integers(1, 6),
        shares=st.booleans(),
        kind=st.sampled_from([{}, {"shift": 1}, {"commit": "causal"}, {"commit": "causal", "says_next": True}]),
    )
    def start(self, page_size, spare, rows, running, shares, kind):
        pages = -(-CONTEXT // page_size) + spare
        self.world = Simulated(pages, page_size, max_batch_rows=rows, max_running=running, shares_prefixes=shares)
        self.scheduler, self.pool, self.spec = self.world.scheduler, self.world.pool, spec(**kind)
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
        drafts=st.booleans(),
        causal_first=st.booleans(),
    )
    def submit(self, branch, fork, prompt, max_tokens, salt, sub, drafts, **diffusion):
        if drafts and self.spec.says_next:
            diffusion |= {"unmask": "linear_spec", "cache": "block", "draft_threshold": diffusion["threshold"]}
        elif sub and (diffusion["block_length"] or 4) % sub == 0:
            diffusion["sub_block_length"] = sub
        self.number += 1
        max_tokens = min(max_tokens, CONTEXT - prompt)
        ids = [*PREFIXES[0][:fork], *branch[fork:]][:prompt]
        new = Request.new(effective(submission(self.number, ids, max_tokens, salt, **diffusion)), self.spec)
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
        ended = {output.request_id for output in outputs if output.finish_reason}
        for plan in plans:
            masked, committed = before[plan.request.id]
            progress = plan.request.masked.sum() < masked or plan.request.committed > committed
            assert progress or plan.request.id in ended or plan.request.is_preempted
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
TestCrowd.settings = settings(max_examples=8, stateful_step_count=30, deadline=None)


class LargeCrowd(Crowd):
    """The same, longer and more often."""


TestLargeCrowd = pytest.mark.slow(LargeCrowd.TestCase)
TestLargeCrowd.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
