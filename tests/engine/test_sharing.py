"""Long requests share forwards: beside the refresh of one, the blocks of the others."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from engine import DiffusionParams, EngineConfig, ModelSpec, SamplingParams, Submission
from engine.core.requests.request import Request
from engine.core.steps.choice import Choice
from engine.core.steps.scores import Scores
from engine.execution.choices import choose_max_batch_rows
from engine.scheduling.pages import PagePool
from engine.scheduling.scheduler import Scheduler
from engine.unmask.policies import select

REQUESTS = 16
CONFIGS = [
    (path.stem, config)
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    if "max_batch_rows" in (config := yaml.safe_load(path.read_text()))
]


def spec(max_model_len, shift):
    eos_ids = frozenset({3})
    return ModelSpec(family="toy", vocab_size=50, mask_id=49, eos_ids=eos_ids, max_model_len=max_model_len, shift=shift)


def requests_per_forward(scheduler, served):
    """Of 16 requests that come together, each as long as the context, 128 of it to decode."""
    length, rng = served.max_model_len, np.random.default_rng(0)
    for number in range(REQUESTS):
        submission = Submission(
            request_id=f"r{number}",
            prompt_ids=[1] * (length - 128),
            sampling=SamplingParams(max_tokens=128),
            diffusion=DiffusionParams(cache="dual", unmask="threshold", threshold=0.9, block_length=32),
        )
        scheduler.add(Request.new(submission, served))
    forwards = steps = 0
    while scheduler.running or scheduler.waiting:
        plans = scheduler.schedule()
        scores = [
            Scores(plan.targets, np.full(len(plan.targets), 5), rng.normal(size=len(plan.targets))) for plan in plans
        ]
        scheduler.commit([Choice(*said, select(*said)) for said in zip(plans, scores, strict=True)])
        forwards, steps = forwards + 1, steps + len(plans)
    return steps / forwards


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("max_model_len", [1024, 4096])
def test_as_an_engine_starts_without_settings(max_model_len, shift):
    served = spec(max_model_len, shift)
    rows = choose_max_batch_rows(EngineConfig(model="m"), served)
    scheduler = Scheduler(PagePool(REQUESTS * max_model_len // 32, 32), max_batch_rows=rows, max_running=64)
    assert requests_per_forward(scheduler, served) > REQUESTS / 2


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_as_the_configs_are_shipped(name, config):
    names = ("max_model_len", "max_batch_rows", "max_running_requests")
    asked = EngineConfig(model="m", **{key: config[key] for key in names})
    served = spec(asked.max_model_len, shift=0 if "llada" in name else 1)
    assert choose_max_batch_rows(asked, served) == asked.max_batch_rows
    pool = PagePool(REQUESTS * asked.max_model_len // 32, 32)
    scheduler = Scheduler(pool, max_batch_rows=asked.max_batch_rows, max_running=asked.max_running_requests)
    assert requests_per_forward(scheduler, served) > REQUESTS / 2
