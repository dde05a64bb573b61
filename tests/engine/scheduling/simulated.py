"""A scheduler of a block-causal model over a pool without tensors, whose slots remember what they hold.

The pool is a table that has, for each slot, what was computed there: the tokens that its keys and values depend on.
"""

import numpy as np

from engine.core.config import ModelSpec
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.submission import Submission
from engine.core.steps.choice import Choice
from engine.core.steps.scores import Scores
from engine.scheduling.pages import PagePool
from engine.scheduling.scheduler import Scheduler
from engine.unmask.policies import select

CONTEXT = 96
PREFIXES = [np.random.default_rng(seed).integers(0, 5, 60).tolist() for seed in range(3)]


def spec(shift=0, commit="block", says_next=False):
    return ModelSpec(
        family="toy",
        vocab_size=50,
        mask_id=49,
        eos_ids=frozenset({48}),
        max_model_len=CONTEXT,
        attention="block_causal",
        block_length=4,
        shift=shift,
        commit=commit,
        says_next=says_next,
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
        length = request.commit_length
        return length, request.cache_salt, request.ids[: (position // length + 1) * length].tobytes()

    def step(self):
        plans = self.scheduler.schedule()
        for plan in plans:
            self.compute(plan)
        return plans, self.scheduler.commit(self.choices(plans))

    def choices(self, plans):
        """What all of them decode."""
        choices = []
        for plan in plans:
            # A pure function of request and position, as a model's answer is.
            noise = np.random.default_rng([len(plan.request.ids), *plan.targets.tolist()])
            count = len(plan.targets)
            tokens = plan.targets % 47 + plan.is_draft * (noise.random(count) < 0.2)  # some drafts are wrong
            scores = Scores(plan.targets, tokens, noise.normal(size=count), noise.random(count), noise.random(count))
            choices.append(Choice(plan, scores, select(plan, scores)))
        return choices

    def compute(self, plan):
        request, start, end = plan.request, plan.request.block.rows_start, plan.request.block.rows_end
        self.rows += len(plan.rows)
        for row in plan.rows.tolist():
            if row >= request.committed:
                slot = int(request.slots[row])
                page = slot // self.pool.page_size
                holders = [live.id for live in self.scheduler.running if page in live.pages]
                assert holders == [request.id], "a page is written that is shared, or nobody's"
                assert page not in self.pool._key_of, "a page is written that others may adopt"
                self.holds[slot] = self.final(request, row) if row < start or plan.is_causal else "open"
        for row, horizon in zip(plan.rows.tolist(), plan.horizons.tolist(), strict=True):
            length = request.commit_length
            assert horizon == (end if row >= start and not plan.is_causal else (row // length + 1) * length)
            for position in range(min(horizon, start)):
                held = self.holds.get(int(request.slots[position]))
                assert held == self.final(request, position), "a row sees what is not its request's, or not final"
            if horizon > start and not plan.request.block.is_computed:
                assert set(range(start, horizon)) <= set(plan.rows.tolist()), "a row sees what was never computed"
