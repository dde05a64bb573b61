"""The bundled model must stay right under each cache. Greedy and seeded: the same figures every time."""

import asyncio

import pytest

from engine import BASIC_TASKS, DEMO_MODEL
from server.eval.answers import Options
from server.eval.local import running
from server.eval.policy import PolicyPair, exact
from server.eval.questions import from_tasks
from server.eval.run import evaluate
from server.eval.score import pooled

SEED, PER_TASK = 7, 40
REACHED = {"none": 0.99, "prefix": 0.99, "dual": 0.99}
"""Accuracy over all families when the model was bundled."""


@pytest.mark.parametrize(
    "cache", ["dual", *(pytest.param(other, marks=pytest.mark.slow) for other in ("none", "prefix"))]
)
def test_five_points_are_too_many_to_lose(cache):
    questions = from_tasks(list(BASIC_TASKS), SEED, PER_TASK, few_shot=0)

    async def rows():
        async with running(DEMO_MODEL, Options(max_tokens=64, plain=False), concurrency=32) as model:
            policy = PolicyPair(cache=cache, unmask="threshold", value=0.9, block_length=32)
            return await evaluate(model, questions, [policy], None, 32, lambda *_: None)

    total = pooled(asyncio.run(rows()))
    assert total.n == PER_TASK * len(BASIC_TASKS)
    assert total.accuracy > REACHED[cache] - 0.05
    assert total.tokens_per_forward > 2


def test_the_exact_decode_is_what_it_says():
    fields = {"cache": "none", "unmask": "fixed", "block_length": 32, "steps": None, "lookahead": None}
    assert exact("dual", 32).diffusion(64) == fields
    assert exact("block", 4).diffusion(64) == fields | {"cache": "block", "block_length": 4}


@pytest.mark.slow
def test_an_answer_does_not_depend_on_the_room_that_was_asked_for():
    """By the defaults: as right with room for 256 and 512 tokens as with 64, in as few forwards."""
    questions = from_tasks(list(BASIC_TASKS), SEED, 100, few_shot=0)

    async def total(max_tokens):
        async with running(DEMO_MODEL, Options(max_tokens=max_tokens, plain=False), concurrency=32) as model:
            return pooled(await evaluate(model, questions, [PolicyPair()], None, 32, lambda *_: None))

    short, *longer = (asyncio.run(total(max_tokens)) for max_tokens in (64, 256, 512))
    for row in (short, *longer):
        assert row.accuracy >= 0.985
        assert abs(row.accuracy - short.accuracy) <= 0.005
        assert row.forwards < 1.05 * short.forwards
