"""What choosing the rows costs d2Cache, on the shape of the benchmark."""

import random
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch

from engine.assemble import assemble
from engine.core.config import EngineConfig
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.submission import Submission
from engine.core.steps.choice import Choice
from engine.models.synthetic import random_model
from engine.unmask.policies import needs, select
from tests.engine.scored import build, score

PROMPT, CANVAS, STEPS = 896, 1024, 14


@pytest.fixture
def small():
    """One request of the small model with cache d2, on one thread: process time is then the work done."""
    threads = torch.get_num_threads()
    length = PROMPT + CANVAS
    model, spec = random_model("small", length, torch.float32, torch.device("cpu"))
    config = EngineConfig(model="small", device="cpu", num_threads=1, kv_cache_tokens=length)
    engine = assemble(config, model, spec, Path())
    rng = random.Random(0)
    submission = Submission(
        request_id="d2",
        prompt_ids=[rng.randrange(spec.vocab_size - 2) for _ in range(PROMPT)],
        sampling=SamplingParams(max_tokens=CANVAS, ignore_eos=True),
        diffusion=DiffusionParams(cache="d2", unmask="fixed", steps=CANVAS // 4, block_length=32),
    )
    engine.submit(engine.new_request(submission))
    yield engine
    torch.set_num_threads(threads)


@pytest.mark.slow
@torch.inference_mode()
def test_choosing_the_rows_costs_little_of_a_step(small):
    """Planning, attention's weights, the rollout and the scores of targets that only rank, against a step that
    computes the same rows and scores the open block alone. Each step runs both ways, in alternating order.
    """
    mask_id = small.info.spec.mask_id

    def run(plans):
        started = time.process_time()
        logits, importance, _ = small.runner.forward(build(plans, small.runner.device, small.info.page_size))
        scores = score(logits, plans, mask_id, needs(plans), importance)
        return time.process_time() - started, scores

    shares = []
    for step in range(STEPS):
        started = time.process_time()
        plans = small.scheduler.schedule()
        planning = time.process_time() - started
        [plan] = plans
        bare = [replace(plan, rollout=False, targets=plan.targets[: plan.num_open])]
        if step % 2:
            (seconds, scores), (without, _) = run(plans), run(bare)
        else:
            (without, _), (seconds, scores) = run(bare), run(plans)
        shares.append((planning + seconds - without) / (planning + seconds))
        [said] = scores
        small.scheduler.commit([Choice(plan, said, select(plan, said))])
        assert plan.rollout
        assert step == 0 or 100 < len(plan.rows) < (PROMPT + CANVAS) / 2
    share = median(shares[1:])
    print(f"choosing the rows is {share:.1%} of a d2 step")
    assert share < 0.15, "the first step computes the canvas, whatever is chosen later"
