"""Scores against torch's own softmax, and the noise against its definition."""

import numpy as np
import torch

from engine.config import ModelSpec
from engine.plan import StepPlan
from engine.request import DiffusionParams, Request, SamplingParams, Submission
from engine.scores import score

VOCAB, MASK = 50, 49
SPEC = ModelSpec(family="toy", vocab_size=VOCAB, mask_id=MASK, eos_ids=frozenset(), max_model_len=4096)


def plan(num_targets=8, temperature=0.0, seed=0):
    sampling = SamplingParams(max_tokens=num_targets, temperature=temperature, seed=seed)
    diffusion = DiffusionParams(block_length=num_targets)
    request = Request.new(
        Submission(request_id="r", prompt_ids=[1, 2, 3], sampling=sampling, diffusion=diffusion), SPEC
    )
    rows = np.arange(request.end)
    return StepPlan(request, rows, np.full(len(rows), request.end), request.targets)


def test_greedy_tokens_and_their_softmax_probability():
    logits = torch.randn(8, VOCAB) * 3
    logits[3, MASK] = 50.0  # the model would love to answer with a mask
    [scores] = score(logits.clone(), [plan()], MASK)
    best = logits.clone()
    best[:, MASK] = -torch.inf
    assert scores.tokens.tolist() == best.argmax(-1).tolist()
    expected = logits.double().softmax(-1)[torch.arange(8), best.argmax(-1)].numpy()
    np.testing.assert_allclose(scores.confidence, expected, rtol=1e-5, atol=1e-30)


def test_a_request_is_scored_the_same_alone_and_in_a_batch():
    logits = torch.randn(24, VOCAB)
    plans = [plan(seed=1, temperature=0.7), plan(), plan(seed=3, temperature=1.5)]
    together = score(logits.clone(), plans, MASK)
    for index, one in enumerate(plans):
        [alone] = score(logits[8 * index : 8 * index + 8].clone(), [one], MASK)
        assert alone.tokens.tolist() == together[index].tokens.tolist()
        np.testing.assert_array_equal(alone.log_odds, together[index].log_odds)


def test_sampling_follows_the_softmax():
    """Chi-square of 20,000 draws over 6 tokens: 20.5 is the 99.9 % point at 5 degrees of freedom."""
    probabilities = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    logits = torch.full((20_000, VOCAB), -torch.inf)
    logits[:, :6] = probabilities.log() * 0.5
    asked = plan(num_targets=20_000, temperature=0.5, seed=11)
    [scores] = score(logits, [asked], MASK)
    counts = np.bincount(scores.tokens, minlength=6)
    expected = probabilities.numpy() * 20_000
    assert ((counts - expected) ** 2 / expected).sum() < 20.5


def test_seeds_and_steps_give_other_draws():
    logits = torch.zeros(8, VOCAB)
    first, second = plan(seed=1, temperature=1.0), plan(seed=2, temperature=1.0)
    a, b = score(torch.cat([logits, logits]), [first, second], MASK)
    assert a.tokens.tolist() != b.tokens.tolist()
    first.request.forwards = 1
    [c] = score(logits.clone(), [first], MASK)
    assert a.tokens.tolist() != c.tokens.tolist()
    assert MASK not in {*a.tokens, *b.tokens, *c.tokens}
