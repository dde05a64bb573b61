"""Each rule against its formula; golden figures are those of the papers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.config import ModelSpec
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.core.steps.scores import Scores
from engine.unmask.policies import UNMASKS
from tests.engine.toys import FULL_ATTENTION_UNMASKS

SPEC = ModelSpec(family="toy", vocab_size=10, mask_id=9, eos_ids=frozenset({8}), max_model_len=4096)


def request(block_length, max_tokens=None, **diffusion):
    diffusion = DiffusionParams(block_length=block_length, **diffusion)
    sampling = SamplingParams(max_tokens=max_tokens or block_length, seed=7)
    submission = Submission(request_id="r", prompt_ids=[1, 2], sampling=sampling, diffusion=diffusion)
    return Request.new(submission, SPEC)


def scores(confidence):
    p = np.clip(np.asarray(confidence, np.float64), 1e-9, 1 - 1e-12)
    positions = 2 + np.arange(len(p))
    return Scores(positions, np.zeros(len(p), np.int64), np.log(p / (1 - p)), entropy=-np.log(p), margin=2 * p - 1)


@pytest.mark.parametrize(
    ("confidence", "accepted"),
    [
        ([0.99], 1),
        ([0.99, 0.1], 1),
        ([0.99, 0.98, 0.1], 2),
        ([0.99, 0.98, 0.97, 0.1], 3),
        ([0.99, 0.98, 0.97], 3),
        ([0.4, 0.3, 0.2, 0.1], 1),
        ([0.99, 0.5, 0.4, 0.3], 1),
    ],
)
def test_factor_is_the_papers_rule(confidence, accepted):
    chosen = UNMASKS["factor"].select(request(len(confidence), factor=1.0), scores(confidence))
    assert chosen.sum() == accepted


def test_threshold_takes_all_that_reach_it():
    chosen = UNMASKS["threshold"].select(request(4, threshold=0.5), scores([0.2, 0.9, 0.51, 0.49]))
    assert chosen.tolist() == [False, True, True, False]


def test_threshold_takes_the_best_when_none_reaches_it():
    chosen = UNMASKS["threshold"].select(request(3, threshold=0.9), scores([0.2, 0.4, 0.3]))
    assert chosen.tolist() == [False, True, False]


def test_sure_tokens_are_still_told_apart():
    """Both probabilities are 1.0 in float32; their log-odds differ."""
    sure = Scores(np.array([2, 3]), np.zeros(2, np.int64), np.array([20.0, 25.0]))
    assert UNMASKS["fixed"].select(request(2), sure).tolist() == [False, True]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(None, [1] * 8), (8, [1] * 8), (4, [2] * 4), (3, [3, 3, 2]), (5, [2, 2, 2, 1, 1]), (1, [8])],
)
def test_fixed_follows_lladas_schedule(steps, expected):
    asked, counts = request(8, steps=steps), []
    while sum(counts) < 8:
        left = 8 - sum(counts)
        counts.append(int(UNMASKS["fixed"].select(asked, scores(np.linspace(0.1, 0.9, left))).sum()))
        asked.block.step += 1
    assert counts == expected


def test_steps_are_spread_over_the_blocks():
    asked = request(4, max_tokens=12, steps=8)  # three blocks: 3, 3 and 2 steps
    per_block = []
    for index in range(3):
        asked.block.index, asked.block.step, done = index, 0, 0
        while done < 4:
            done += int(UNMASKS["fixed"].select(asked, scores([0.5] * (4 - done))).sum())
            asked.block.step += 1
        per_block.append(asked.block.step)
    assert per_block == [3, 3, 2]


def test_random_depends_on_the_seed_and_not_on_confidence():
    a, b = request(16), request(16)
    first = UNMASKS["random"].select(a, scores(np.linspace(0.1, 0.9, 16)))
    assert (first == UNMASKS["random"].select(b, scores(np.linspace(0.9, 0.1, 16)))).all()
    a.sampling = SamplingParams(max_tokens=16, seed=8)
    seeds = set()
    for seed in range(20):
        a.sampling = SamplingParams(max_tokens=16, seed=seed)
        seeds.add(int(UNMASKS["random"].select(a, scores([0.5] * 16)).argmax()))
    assert len(seeds) > 5


def test_random_goes_by_position_whoever_else_is_scored():
    asked = request(16, steps=16)
    order = []
    while asked.masked.any():
        given = scores([0.5] * int(asked.masked.sum()))
        given = replace(given, positions=asked.targets)
        order.append(int(asked.targets[UNMASKS["random"].select(asked, given)][0]))
        asked.masked[order[-1]] = False
    fresh = request(16, steps=16)
    few = np.sort(order[5:9])
    given = replace(scores([0.5] * 4), positions=few)
    assert few[UNMASKS["random"].select(fresh, given)].tolist() == [order[5]]


def scored(entropy=None, margin=None, confidence=None):
    count = len(entropy or margin)
    p = np.array(confidence or [0.5] * count)
    entropy, margin = (None if values is None else np.array(values) for values in (entropy, margin))
    return Scores(2 + np.arange(count), np.zeros(count, np.int64), np.log(p / (1 - p)), entropy, margin)


def test_entropy_takes_the_lowest_and_margin_the_highest():
    by_entropy = UNMASKS["entropy"].select(request(4, steps=2), scored(entropy=[0.3, 0.1, 0.9, 0.2]))
    assert by_entropy.tolist() == [False, True, False, True]
    by_margin = UNMASKS["margin"].select(request(4, steps=2), scored(margin=[0.3, 0.1, 0.9, 0.2]))
    assert by_margin.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("gamma", "accepted"), [(0.0, [0]), (0.051, [0, 3]), (0.149, [0, 3]), (0.151, [0, 2, 3]), (0.5, [0, 1, 2, 3])]
)
def test_the_entropy_bound_is_on_all_entropies_but_the_largest(gamma, accepted):
    """In the order of confidence the entropies are 0.1, 0.05, 0.2 and 0.3: without the largest, 0, 0.05, 0.15, 0.35."""
    given = scored(entropy=[0.1, 0.3, 0.2, 0.05], confidence=[0.9, 0.2, 0.3, 0.8])
    chosen = UNMASKS["entropy_bound"].select(request(4, gamma=gamma), given)
    assert np.flatnonzero(chosen).tolist() == accepted


def test_certainty_prefers_what_stands_among_known_tokens():
    asked = request(16, sigma=2.0)
    asked.masked[2:6] = False
    given = Scores(asked.targets, np.zeros(12, np.int64), np.zeros(12))
    assert np.flatnonzero(UNMASKS["certainty"].select(asked, given)).tolist() == [0], "left to right, if equally sure"
    asked.masked[12] = False
    surer = Scores(asked.targets, np.zeros(11, np.int64), np.where(asked.targets == 11, 3.0, -3.0))
    assert asked.targets[UNMASKS["certainty"].select(asked, surer)].tolist() == [11]


def test_certainty_with_a_threshold_takes_all_that_reach_it():
    asked = request(16, sigma=2.0, threshold=0.5)
    asked.masked[2:6] = False
    given = Scores(asked.targets, np.zeros(12, np.int64), np.full(12, 5.0))
    assert np.flatnonzero(UNMASKS["certainty_threshold"].select(asked, given)).tolist() == [0]
    asked.masked[2:10] = False
    asked.masked[12:] = False
    given = Scores(asked.targets, np.zeros(2, np.int64), np.full(2, 5.0))
    assert UNMASKS["certainty_threshold"].select(asked, given).all()


@given(
    name=st.sampled_from(FULL_ATTENTION_UNMASKS),
    confidence=st.lists(st.floats(0, 1), min_size=1, max_size=32),
    threshold=st.floats(0, 1),
    factor=st.floats(0.01, 10),
    steps=st.none() | st.integers(1, 64),
    step=st.integers(0, 40),
)
def test_every_rule_always_takes_at_least_one(name, confidence, threshold, factor, steps, step):
    asked = request(len(confidence), threshold=threshold, factor=factor, steps=steps)
    asked.block.step = step
    chosen = UNMASKS[name].select(asked, scores(confidence))
    assert chosen.shape == (len(confidence),)
    assert chosen.any()
