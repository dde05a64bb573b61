"""Policies whose schedule is of what remains: what each takes of given scores, by vLLM's rules."""

import numpy as np
import pytest

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.core.requests.request import Request
from engine.core.steps.scores import Scores
from engine.unmask.policies import UNMASKS

PROBABILITIES = np.array([0.5, 0.95, 0.7, 0.9, 0.2, 0.91, 0.6, 0.3])


def asked(unmask, step=0, **diffusion):
    spec = ModelSpec(family="toy", vocab_size=50, mask_id=49, eos_ids=frozenset(), max_model_len=96)
    submission = Submission(
        request_id="r",
        prompt_ids=[1] * 8,
        sampling=SamplingParams(max_tokens=8),
        diffusion=DiffusionParams(unmask=unmask, block_length=8, **diffusion),
    )
    request = Request.new(submission, spec)
    request.block.step = step
    return request


def taken(request, left=range(8)):
    """The places that are chosen, of the masks that are left."""
    left, policy = np.array(left), UNMASKS[request.diffusion.unmask]
    request.masked[8:] = False
    request.masked[8 + left] = True
    log_odds = np.log(PROBABILITIES / (1 - PROBABILITIES))[left]
    scores = Scores(8 + left, np.zeros(len(left), np.int64), log_odds)
    return left[policy.select(request, scores)].tolist()


@pytest.mark.parametrize(
    ("step", "left", "count"),
    [(0, range(8), 3), (1, range(3, 8), 3), (1, [6, 7], 1), (2, [5, 6, 7], 3), (7, [4, 5], 2)],
)
def test_what_is_left_is_spread_over_the_steps_that_are_left(step, left, count):
    request = asked("leftmost", step, denoising_steps=3)
    assert taken(request, left) == list(left)[:count]
    request = asked("low_confidence", step, denoising_steps=3)
    best = sorted(left, key=lambda place: -PROBABILITIES[place])
    assert taken(request, left) == sorted(best[:count])


def test_a_block_has_as_many_steps_as_it_is_long_if_nothing_else_is_said():
    assert taken(asked("leftmost")) == [0]
    assert taken(asked("low_confidence")) == [1]
    assert taken(asked("low_confidence", step=7)) == list(range(8))


def test_all_that_reach_the_threshold_and_the_best_and_in_the_last_step_all():
    assert taken(asked("confidence_threshold", threshold=0.85)) == [1, 3, 5]
    assert taken(asked("confidence_threshold", threshold=0.99)) == [1]
    assert taken(asked("confidence_threshold", step=2, threshold=0.99, denoising_steps=4)) == [1]
    assert taken(asked("confidence_threshold", step=3, threshold=0.99, denoising_steps=4)) == list(range(8))


def test_a_token_below_the_threshold_is_forced():
    policy, request = UNMASKS["confidence_threshold"], asked("confidence_threshold", threshold=0.9)
    scores = Scores(np.array([8]), np.zeros(1, np.int64), np.array([0.0]))
    assert policy.is_forced(request, scores)
    assert not policy.is_forced(request, Scores(scores.positions, scores.tokens, np.array([9.0])))


@pytest.mark.parametrize(
    ("unmask", "steps", "counts"),
    [
        ("low_confidence", 8, [4] * 8),
        ("leftmost", 8, [4] * 8),
        ("leftmost", 5, [7, 1, 8, 8, 8]),
        ("confidence_threshold", 8, [1, 1, 1, 5, 1, 7, 8, 8]),  # all of a sub-block where as many are due
        ("confidence_threshold", 32, [1] * 32),
        ("confidence_threshold", 2, [8] * 4),  # each sub-block takes a step
    ],
)
def test_sub_blocks_share_the_steps_of_their_block(unmask, steps, counts):
    spec = ModelSpec(
        family="toy",
        vocab_size=50,
        mask_id=49,
        eos_ids=frozenset(),
        max_model_len=96,
        attention="block_causal",
        block_length=32,
    )
    diffusion = DiffusionParams(unmask=unmask, threshold=1.0, sub_block_length=8, denoising_steps=steps)
    sampling = SamplingParams(max_tokens=32)
    request = Request.new(Submission(request_id="r", prompt_ids=[1] * 32, sampling=sampling, diffusion=diffusion), spec)
    found = []
    while request.masked.any():
        targets = request.targets
        chosen = UNMASKS[unmask].select(request, Scores(targets, targets, np.zeros(len(targets))))
        request.masked[targets[chosen]] = False
        request.block.step += 1
        found.append(int(chosen.sum()))
    assert found == counts
