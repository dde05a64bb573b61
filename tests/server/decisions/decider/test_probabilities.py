"""Decisions by real engines: what a plain forward says of each option, whatever else is asked together."""

import asyncio

import numpy as np
import pytest
import torch

from engine import InvalidRequest
from engine.bench.block_causal import BlockCausalContext
from engine.bench.causal_commit import CommittedSequence
from engine.bench.reference import DenseContext
from tests.server.decisions.decider.asking import QUESTIONS, question


def plain(engine, submission):
    """For each blank, the probabilities of the submission's named tokens, by a plain forward over its whole canvas."""
    request, spec, model = engine.new_request(submission), engine.info.spec, engine.runner.model
    ids, named = torch.from_numpy(request.ids), list(submission.sampling.logprob_ids)
    if spec.says_next:
        with torch.inference_mode():
            said = CommittedSequence(model).append(submission.prompt_ids)[-1].double().numpy()
        weights = np.exp(said[named])
        yield weights / weights.sum()
        return
    context = DenseContext(model, len(ids))
    if spec.is_block_causal:
        context = BlockCausalContext(model, len(ids), request.block_length)
    with torch.inference_mode():
        logits = model.logits(model(ids, torch.arange(len(ids)), context)).double().numpy()
    for blank in request.answer_positions[: submission.sampling.max_tokens]:
        weights = np.exp(logits[max(blank - spec.shift, 0), named])
        yield weights / weights.sum()


async def test_each_option_is_as_probable_as_a_plain_forward_says(deciding, engine):
    async with deciding() as decide:
        decided = await decide(QUESTIONS)
    assert len(decide.submitted) == len(decided.probabilities) == 24
    for one, found, submission in zip(QUESTIONS, decided.probabilities, decide.submitted, strict=True):
        assert len(found) == len(one.options)
        assert sum(found) == pytest.approx(1, abs=1e-12)
        [expected] = plain(engine, submission)
        assert found == pytest.approx(expected, abs=1e-5)
    told = {tuple(np.round(found, 9)) for found in decided.probabilities}
    assert len(told) == 24, "each question has its own answer"


async def test_answers_do_not_depend_on_what_else_is_asked(deciding):
    order = np.random.default_rng(0).permutation(24).tolist()
    async with deciding() as decide:
        together = await decide(QUESTIONS)
        mixed, alone, twice = await asyncio.gather(
            decide([QUESTIONS[number] for number in order]), decide(QUESTIONS[5:6]), decide(QUESTIONS[5:6] * 3)
        )
    for place, number in enumerate(order):
        assert mixed.probabilities[place] == pytest.approx(together.probabilities[number], abs=1e-6)
    for found in (*alone.probabilities, *twice.probabilities):
        assert found == pytest.approx(together.probabilities[5], abs=1e-6)


@pytest.fixture
def steps(engine, monkeypatch):
    """The steps of the engine, each as its plans."""
    taken, commit = [], engine.scheduler.commit

    def watched(choices):
        taken.append([choice.plan for choice in choices])
        return commit(choices)

    monkeypatch.setattr(engine.scheduler, "commit", watched)
    return taken


@pytest.mark.parametrize("number", [100, pytest.param(400, marks=pytest.mark.slow)])
async def test_many_at_once(deciding, engine, steps, number):
    """More than the engine has places for. One forward answers each; only what fills up a step is computed before."""
    assert engine.info.max_running_requests + engine.info.max_queued_requests < number
    async with deciding() as decide:
        decided = await decide([question(n) for n in range(number)])
    assert [len(found) for found in decided.probabilities] == [len(question(n).options) for n in range(number)]
    assert decided.usage.completion_tokens == 0
    assert decided.usage.prompt_tokens == sum(len(one.prompt_ids) for one in decide.submitted)
    plans = [plan for step in steps for plan in step]
    assert decided.usage.forwards == len(plans)
    answering = [plan.request.id for plan in plans if len(plan.targets)]
    assert sorted(answering) == sorted(one.request_id for one in decide.submitted)
    spec = engine.info.spec
    for step in steps:
        parts = [plan for plan in step if not len(plan.targets)]
        assert spec.is_block_causal or not parts
        free = engine.info.max_batch_rows - sum(len(plan.rows) for plan in step)
        assert not parts or free < spec.block_length, "a part of a prompt, where the rest of the step was left empty"


async def test_block_causal_questions_share_the_pages_of_the_input(deciding, engine):
    async with deciding() as decide:
        decided = await decide(QUESTIONS)
    block = engine.info.spec.block_length or 0
    shared = 0
    if block:
        prompts = np.array([one.prompt_ids[:80] for one in decide.submitted])
        alike = int((prompts == prompts[0]).all(axis=0).cumprod().sum())
        assert alike > 70
        shared = 23 * (alike // max(block, 8) * max(block, 8))
    assert decided.usage.cached_tokens >= shared
    assert bool(decided.usage.cached_tokens) == bool(block)


async def test_joint_questions_are_one_canvas(deciding, engine):
    async with deciding() as decide:
        if engine.info.spec.is_block_causal:
            with pytest.raises(InvalidRequest, match="block-causal") as error:
                await decide(QUESTIONS[:6], is_joint=True)
            assert error.value.param == "diffusion.joint"
            return
        decided = await decide(QUESTIONS[:6], is_joint=True)
        again = await decide(QUESTIONS[:6], is_joint=True)
    submission = decide.submitted[0]
    assert decided == again
    assert decided.usage.forwards == 1
    ids = list(submission.sampling.logprob_ids)
    for one, found, expected in zip(QUESTIONS, decided.probabilities, plain(engine, submission), strict=False):
        labels = "123456789" if one.kind == "score" else "ABCDEFGHI"
        own = expected[[ids.index(ord(label)) for label in labels[: len(one.options)]]]
        assert found == pytest.approx(own / own.sum(), abs=1e-5)
