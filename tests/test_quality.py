"""The bundled model must stay right under each cache. Greedy and seeded: the same figures every time."""

import asyncio

import pytest

from engine import DEMO_MODEL, DEMO_TASKS
from server.eval.answers import Options
from server.eval.local import running
from server.eval.policy import Policy, exact
from server.eval.questions import from_tasks
from server.eval.run import evaluate
from server.eval.score import pooled

SEED, PER_TASK = 7, 40
REACHED = {"none": 0.99, "prefix": 0.99, "dual": 0.99}
"""Accuracy over all families when the model was bundled."""


@pytest.mark.parametrize("cache", REACHED)
def test_five_points_are_too_many_to_lose(cache):
    questions = from_tasks(list(DEMO_TASKS), SEED, PER_TASK, few_shot=0)

    async def rows():
        async with running(DEMO_MODEL, Options(max_tokens=64, plain=False), concurrency=32) as model:
            policy = Policy(cache=cache, unmask="threshold", value=0.9, block_length=32)
            return await evaluate(model, questions, [policy], None, 32, lambda *_: None)

    total = pooled(asyncio.run(rows()))
    assert total.n == PER_TASK * len(DEMO_TASKS)
    assert total.accuracy > REACHED[cache] - 0.05
    assert total.tokens_per_forward > 2


def test_the_exact_decode_is_what_it_says():
    assert exact(32).diffusion(64) == {"cache": "none", "unmask": "fixed", "block_length": 32, "steps": 64}
