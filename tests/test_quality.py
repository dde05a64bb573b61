"""The bundled models must stay right under each cache. Greedy and seeded: the same figures every time."""

import asyncio

import pytest

from engine import BASIC_TASKS, BUNDLED, DEMO_TASKS
from server.eval.answerers.answers import Options
from server.eval.answerers.local import running
from server.eval.calibration import calibrate
from server.eval.policy import KVFormat, PolicyPair, exact
from server.eval.questions import from_tasks
from server.eval.run import evaluate
from server.eval.score import pooled

SEED, FEW, MANY = 7, 3, 20
"""Questions of a family: by default, and in the slow tests."""
CACHES = [("demo", "dual"), ("demo-block", "block")]
REACHED = {"basic": 0.98, "others": 0.97}
"""Accuracy over the first five families, and over the others, when the models were bundled (docs/demo-model.md)."""


def answered(model, tasks, policy, reference=None, *, limit=MANY, few_shot=0, max_tokens=128, also=()):
    questions = from_tasks(tasks, SEED, limit, few_shot)
    references = {policy: reference} if reference else {}

    def answerers(*formats):
        return running(BUNDLED[model], Options(max_tokens=max_tokens, plain=False), 32, *formats)

    return asyncio.run(evaluate(answerers, questions, [policy, *also], references, 32, lambda *_: None))


@pytest.mark.parametrize("limit", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("model", "cache"), CACHES)
def test_five_points_are_too_many_to_lose(model, cache, limit):
    rows = answered(model, DEMO_TASKS, PolicyPair(cache=cache, unmask="threshold", value=0.9), limit=limit)
    basic = pooled([row for row in rows if row.task in BASIC_TASKS])
    others = pooled([row for row in rows if row.task not in BASIC_TASKS])
    assert basic.accuracy > REACHED["basic"] - 0.05
    assert others.accuracy > REACHED["others"] - 0.05
    assert pooled([basic, others]).tokens_per_forward > 2


@pytest.mark.slow
@pytest.mark.parametrize("model", BUNDLED)
def test_solved_examples_do_not_confuse(model):
    rows = answered(model, DEMO_TASKS, PolicyPair(unmask="threshold", value=0.9), limit=8, few_shot=3)
    assert pooled(rows).accuracy > REACHED["others"] - 0.05


def calibrated(model, limit):
    questions = from_tasks(["yesno"], 20261130, limit, 0)

    async def asked():
        async with running(BUNDLED[model], Options(max_tokens=32, plain=False), 32) as answerer:
            return await calibrate(answerer, questions, 32)

    return asyncio.run(asked())


@pytest.mark.parametrize("model", BUNDLED)
def test_yes_is_told_from_no_by_one_forward(model):
    assert calibrated(model, 40).brier < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("model", BUNDLED)
def test_the_probability_of_yes_is_the_share_of_truths(model):
    found = calibrated(model, 400)
    assert found.brier < 0.08
    assert found.calibration_error < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("model", BUNDLED)
def test_guided_forms_and_calls_are_no_less_right(model):
    free, posterior = (
        pooled(answered(model, ["form", "tool"], PolicyPair(guidance=guidance))) for guidance in (None, "posterior")
    )
    assert posterior.correct >= free.correct


@pytest.mark.slow
@pytest.mark.parametrize(("model", "cache"), CACHES)
@pytest.mark.parametrize(("kv_dtype", "share"), [("int8", 0.99), ("fp8", 0.95)])
def test_keys_and_values_in_codes_give_the_same_answers(kv_dtype, share, model, cache):
    """Where one answer is right; a story has many, between which a last bit decides (docs/quality.md)."""
    coded, plain = (PolicyPair(cache=cache, kv_format=KVFormat(name)) for name in (kv_dtype, "auto"))
    rows = answered(model, list(BASIC_TASKS), coded, plain, limit=10)
    assert pooled([row for row in rows if row.task != "story"]).agreement >= share
    assert pooled(rows).accuracy > REACHED["basic"] - 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("model", "cache"), CACHES)
def test_weights_in_codes_are_within_a_point(model, cache):
    coded, plain = (PolicyPair(cache=cache, quantization=name) for name in ("int8", "none"))
    rows = answered(model, list(BASIC_TASKS), coded, plain, limit=10, also=[plain])
    in_codes, in_numbers = ([row for row in rows if row.policy == policy] for policy in (coded, plain))
    assert pooled([row for row in in_codes if row.task != "story"]).agreement >= 0.99
    assert abs(pooled(in_codes).accuracy - pooled(in_numbers).accuracy) <= 0.01


def test_the_exact_decode_is_what_it_says():
    fields = {"cache": "none", "unmask": "fixed", "block_length": 32, "steps": None, "lookahead": None}
    assert exact("dual", 32).diffusion(64) == fields
    assert exact("block", 4).diffusion(64) == fields | {"cache": "block", "block_length": 4}


@pytest.mark.slow
@pytest.mark.parametrize("model", BUNDLED)
def test_an_answer_does_not_depend_on_the_room_that_was_asked_for(model):
    """By the defaults: as right with room for 512 tokens as with 64, in as few forwards."""
    short, long = (
        pooled(answered(model, list(BASIC_TASKS), PolicyPair(), limit=10, max_tokens=room)) for room in (64, 512)
    )
    for row in (short, long):
        assert row.accuracy > 0.95
    assert abs(long.accuracy - short.accuracy) <= 0.01
    assert long.forwards < 1.05 * short.forwards
