"""SDAR's strategies: what each takes of given scores, against the published function's rules."""

import numpy as np
import pytest

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.core.requests.request import Request
from engine.core.steps.scores import Scores
from engine.unmask.policies import UNMASKS

PROBABILITIES = np.array([0.5, 0.95, 0.7, 0.9, 0.2, 0.91, 0.6, 0.3])


def asked(unmask, step=0, strict=True, **diffusion):
    spec = ModelSpec(
        family="toy",
        vocab_size=50,
        mask_id=49,
        eos_ids=frozenset(),
        max_model_len=96,
        attention="block_causal",
        block_length=8,
        strict_threshold=strict,
    )
    submission = Submission(
        request_id="r",
        prompt_ids=[1] * 8,
        sampling=SamplingParams(max_tokens=8),
        diffusion=DiffusionParams(unmask=unmask, **diffusion),
    )
    request = Request.new(submission, spec)
    request.block.step = step
    return request


def taken(request, entropy=None):
    positions = 8 + np.arange(8)
    log_odds = np.log(PROBABILITIES / (1 - PROBABILITIES))
    scores = Scores(positions, np.zeros(8, np.int64), log_odds, entropy)
    return np.flatnonzero(UNMASKS[request.diffusion.unmask].select(request, scores)).tolist()


@pytest.mark.parametrize(("step", "count"), [(0, 3), (1, 3), (2, 2), (3, 2), (9, 2)])
def test_the_schedule_spreads_a_full_block_and_gives_the_remainder_to_the_first_steps(step, count):
    assert taken(asked("sequential", step, denoising_steps=3)) == list(range(count))
    best = [1, 5, 3][:count]
    assert taken(asked("low_confidence_static", step, denoising_steps=3)) == sorted(best)


def test_without_a_number_of_steps_each_takes_one():
    assert taken(asked("sequential")) == [0]
    assert taken(asked("low_confidence_static")) == [1]


def test_the_schedule_is_that_of_a_full_block_however_few_masks_are_left():
    request = asked("sequential", denoising_steps=4)
    scores = Scores(np.array([11, 14]), np.zeros(2, np.int64), np.zeros(2))
    assert UNMASKS["sequential"].select(request, scores).tolist() == [True, False], "14 is not among the next two"


@pytest.mark.parametrize(
    ("threshold", "steps", "expected"),
    [(0.85, 8, [1, 3, 5]), (0.9, 8, [1, 5]), (0.85, 2, [1, 2, 3, 5]), (0.96, 8, [1]), (0.0, 1, list(range(8)))],
)
def test_dynamic_takes_what_is_confident_unless_more_are_due(threshold, steps, expected):
    request = asked("low_confidence_dynamic", threshold=threshold, denoising_steps=steps)
    assert taken(request) == expected


def test_whether_reaching_the_threshold_is_enough_is_the_models_word():
    for unmask in ("threshold", "low_confidence_dynamic"):
        assert taken(asked(unmask, threshold=0.5, strict=True)) == [1, 2, 3, 5, 6]
        assert taken(asked(unmask, threshold=0.5, strict=False)) == [0, 1, 2, 3, 5, 6]


@pytest.mark.parametrize(
    ("bound", "expected"),
    [(0.05, [1]), (0.11, [1]), (0.3, [1]), (0.31, [1, 5]), (0.61, [1, 3, 5]), (9.0, list(range(8)))],
)
def test_entropy_bounded_takes_the_lowest_entropies_whose_sum_stays_below(bound, expected):
    entropy = np.array([0.9, 0.1, 0.8, 0.3, 1.2, 0.2, 0.7, 1.1])
    assert taken(asked("entropy_bounded", gamma=bound), entropy) == expected
