"""What a step costs the host, in function calls: the same on a busy machine, and for each request in a crowd."""

import sys
from collections import Counter

import numpy as np
import pytest
import torch

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.core.plan import Scores
from engine.core.request import Request
from engine.execution.batch import build
from engine.execution.isolate import choose
from engine.scheduling.faults import Faults
from engine.scheduling.pages import PagePool
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.tally import Tally
from engine.scoring.slices import target_slices
from engine.unmask.policies import needs

CPU = torch.device("cpu")
SPEC = ModelSpec(family="toy", vocab_size=50, mask_id=49, eos_ids=frozenset({47, 48}), max_model_len=1920)
STEPS = 4


def crowd(size):
    """So many requests of 1,920 positions, 1,024 of them to decode, after their first step."""
    scheduler = Scheduler(PagePool(60 * size, 32), max_batch_rows=1920 * size, max_running=size)
    for number in range(size):
        submission = Submission(
            request_id=str(number),
            prompt_ids=[1] * 896,
            sampling=SamplingParams(max_tokens=1024),
            diffusion=DiffusionParams(cache="dual", unmask="threshold", block_length=32),
        )
        scheduler.add(Request.new(submission, SPEC))
    step(scheduler, Tally())
    return scheduler


def step(scheduler, tally):
    """All that the host does but the scoring itself."""
    plans = scheduler.schedule()
    build(plans, CPU)
    for _ in target_slices(plans, needs(plans)):
        pass
    rng = np.random.default_rng(0)
    scores = [Scores(plan.targets, np.full(len(plan.targets), 5), rng.normal(size=len(plan.targets))) for plan in plans]
    tally.chosen(choices := choose(plans, scores, Faults()))
    scheduler.commit(choices)


def calls(size):
    """Function calls, Python's and C's, of one step of one request among so many."""
    scheduler, tally, counted = crowd(size), Tally(), Counter()

    def count(_frame, event, _argument):
        counted[event] += 1

    for _ in range(STEPS):
        sys.setprofile(count)
        try:
            step(scheduler, tally)
        finally:
            sys.setprofile(None)
    return (counted["call"] + counted["c_call"]) / (STEPS * size)


@pytest.mark.parametrize("size", [64, 256])
def test_a_request_costs_no_more_in_a_crowd(size):
    assert calls(size) < 1.1 * calls(16)


def test_a_step_of_a_request_is_few_calls():
    """293 when each policy, the tally and the history worked out confidences for themselves; 156 since."""
    assert calls(64) < 175
