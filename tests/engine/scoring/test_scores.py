"""Scores against torch's own softmax, and the noise against its definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.core.config import ModelSpec
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Needs
from engine.kernels import proposals
from tests.engine.scored import score

VOCAB, MASK = 50, 49
SPEC = ModelSpec(family="toy", vocab_size=VOCAB, mask_id=MASK, eos_ids=frozenset(), max_model_len=32_768)


@pytest.fixture(autouse=True)
def _the_same_logits_every_time():
    torch.manual_seed(0)


def plan(num_targets=8, **sampling):
    sampling = SamplingParams(max_tokens=num_targets, **sampling)
    diffusion = DiffusionParams(block_length=num_targets)
    request = Request.new(
        Submission(request_id="r", prompt_ids=[1, 2, 3], sampling=sampling, diffusion=diffusion), SPEC
    )
    rows = np.arange(request.canvas_end)
    return StepPlan(request, rows, np.full(len(rows), request.canvas_end), request.targets)


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


class Lazy:
    """Logits of a head, as an engine has them; knows how many rows were only proposed."""

    proposed_at_once = 256

    def __init__(self, hidden, weight):
        self.hidden, self.weight, self.proposed = hidden, weight, []

    def __getitem__(self, some):
        return proposals.head(self.hidden[some], self.weight)

    def propose(self, some, mask_id):
        self.proposed.append(len(self.hidden[some]))
        return proposals.propose(self.hidden[some], self.weight, mask_id)

    def part(self, indices):
        part = Lazy(self.hidden[indices], self.weight)
        part.proposed = self.proposed
        return part


@torch.inference_mode()
def test_who_asks_for_proposals_alone_gets_them_as_if_alone():
    """Whatever its neighbours ask for: where logits are never stored, log-odds may differ in the last bits."""
    hidden, weight = torch.randn(64, 16), torch.randn(VOCAB, 16)
    plain = [plan(), replace(plan(), rollout=True), plan(top_k=3)]
    others = [
        plan(temperature=0.7, seed=1),
        plan(logprobs=3),
        plan(presence_penalty=1.0),
        replace(plan(), rollout=True),
    ]
    plans = [plain[0], *others[:2], *plain[1:], *others[2:], plan()]
    needs = [Needs(entropy=asked is others[3]) for asked in plans]
    rollouts = [torch.full((3,), 1.0), torch.full((3,), 2.0)]
    logits = Lazy(hidden, weight)
    together = score(logits, plans, MASK, needs, rollouts)
    assert sum(logits.proposed) == 32, "the plain plans' targets, and no others"
    rollout = iter(rollouts)
    for index, (asked, need) in enumerate(zip(plans, needs, strict=True)):
        own = [next(rollout)] if asked.rollout else []
        [alone] = score(Lazy(hidden[8 * index : 8 * index + 8], weight), [asked], MASK, [need], own)
        [stored] = score(proposals.head(hidden[8 * index : 8 * index + 8], weight), [asked], MASK, [need], own)
        assert together[index].positions is asked.targets
        for name in ("tokens", "log_odds", "entropy", "importance"):
            np.testing.assert_array_equal(getattr(together[index], name), getattr(alone, name))
        assert (together[index].logprobs is None) == (asked.request.sampling.logprobs is None)
        np.testing.assert_array_equal(alone.tokens, stored.tokens)
        np.testing.assert_allclose(alone.log_odds, stored.log_odds, atol=1e-5)


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
    first.request.decoding_steps = 1
    [c] = score(logits.clone(), [first], MASK)
    assert a.tokens.tolist() != c.tokens.tolist()
    assert MASK not in {*a.tokens, *b.tokens, *c.tokens}


def test_entropy_and_margin_are_those_of_the_softmax():
    logits = torch.randn(8, VOCAB) * 3
    logits[3, MASK] = 12.0  # here the model would rather have the mask
    [scores] = score(logits.clone(), [plan()], MASK, [Needs(entropy=True, margin=True)])
    p = logits.double().softmax(-1)
    np.testing.assert_allclose(scores.entropy, -torch.xlogy(p, p).sum(-1), rtol=1e-5)
    first, second = p.topk(2).values.T
    expected = torch.where(p.argmax(-1) == MASK, second - first, first - second)
    np.testing.assert_allclose(scores.margin, expected, rtol=1e-5)
    assert scores.margin[3] < 0


def test_a_sure_model_is_told_apart():
    """Probabilities that float32 rounds to 1: entropy and margin keep their digits all the same."""
    logits = torch.zeros(3, VOCAB)
    logits[0, 5], logits[1, 5], logits[2, 5] = 30.0, 25.0, 200.0
    [scores] = score(logits.clone(), [plan(3)], MASK, [Needs(entropy=True, margin=True)])
    p = logits.double().softmax(-1)
    np.testing.assert_allclose(scores.entropy, -torch.xlogy(p, p).sum(-1), rtol=1e-5, atol=1e-80)
    np.testing.assert_allclose(1 - scores.margin[:2], (1 - (p[:, 5] - p[:, 0]))[:2], rtol=1e-3)
    assert scores.margin[0] > scores.margin[1]


def test_each_plan_gets_what_it_needs_and_no_more():
    logits = torch.randn(32, VOCAB)
    needs = [Needs(), Needs(entropy=True), Needs(margin=True, processed=True), Needs(entropy=True, margin=True)]
    plans = [plan(), plan(top_p=0.5), plan(top_k=3), plan(temperature=0.7, seed=4)]
    together = score(logits.clone(), plans, MASK, needs)
    assert [scores.entropy is not None for scores in together] == [False, True, False, True]
    assert [scores.margin is not None for scores in together] == [False, False, True, True]
    for index, scores in enumerate(together):
        [alone] = score(logits[8 * index : 8 * index + 8].clone(), [plans[index]], MASK, [needs[index]])
        for name in ("tokens", "log_odds", "entropy", "margin"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(scores, name))


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_a_processed_distribution_is_the_one_tokens_are_drawn_from(temperature):
    """Temperature, then top_p, then top_k, then the softmax: its confidence, entropy and margin."""
    logits = torch.randn(8, VOCAB) * 2
    asked = plan(temperature=temperature, top_p=0.8, top_k=5, seed=3)
    [scores] = score(logits.clone(), [asked], MASK, [Needs(processed=True, entropy=True, margin=True)])
    for row in range(8):
        p = (logits[row].double() / (temperature or 1)).softmax(-1)
        order = p.argsort(descending=True)
        kept = order[(p[order].cumsum(0) - p[order]) <= 0.8][:5]
        p = torch.zeros_like(p).index_copy(0, kept, p[kept])
        p /= p.sum()
        assert p[scores.tokens[row]] > 0
        np.testing.assert_allclose(scores.confidence[row], p[scores.tokens[row]], rtol=1e-4)
        np.testing.assert_allclose(scores.entropy[row], -torch.xlogy(p, p).sum(), rtol=1e-4, atol=1e-9)
        first, second = p.topk(2).values
        sign = -1 if p.argmax() == MASK else 1
        np.testing.assert_allclose(scores.margin[row], sign * (first - second), rtol=1e-4, atol=1e-7)


def test_top_p_and_top_k_leave_confidence_alone_unless_processed():
    """They restrict the choice, as temperature moves it; the log-odds stay those of the model's own softmax."""
    logits = torch.randn(8, VOCAB)
    [scores] = score(logits.clone(), [plan(temperature=1.0, top_k=2, seed=1)], MASK)
    p = logits.double().softmax(-1)[torch.arange(8), scores.tokens]
    np.testing.assert_allclose(scores.confidence, p, rtol=1e-5)
    [greedy] = score(logits.clone(), [plan(top_p=0.1, top_k=1)], MASK)
    [plain] = score(logits.clone(), [plan()], MASK)
    np.testing.assert_array_equal(greedy.log_odds, plain.log_odds)


def test_the_only_token_left_is_certain():
    [scores] = score(torch.randn(8, VOCAB), [plan(top_k=1)], MASK, [Needs(processed=True, entropy=True, margin=True)])
    assert scores.confidence.tolist() == [1.0] * 8
    assert scores.entropy.tolist() == [0.0] * 8
    assert scores.margin.tolist() == [1.0] * 8
