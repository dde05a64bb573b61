"""Scores of edited logits against a slow twin that takes one request, one position and one token at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.params import SamplingParams
from engine.core.steps.scores import Needs
from engine.kernels.transfer import Upload
from engine.scoring.edits import Edits, edits, is_edited
from tests.engine.score_twin import EOS, MASK, VOCAB, batches, plan, random_logits, twin
from tests.engine.scored import score


@settings(deadline=None, max_examples=30)  # the twin is slow
@given(batch=batches(), seed=st.integers(0, 1000))
def test_each_request_is_edited_and_drawn_as_the_slow_twin_does_it(batch, seed):
    plans, needs = batch
    logits = random_logits(plans, seed)
    together, first = score(logits.clone(), plans, MASK, needs), 0
    for asked, need, scores in zip(plans, needs, together, strict=True):
        assert (scores.logprobs is not None) == (asked.request.sampling.logprobs is not None)
        told = list(scores.logprobs.of(np.full(len(asked.targets), True))) if scores.logprobs else None
        for index, position in enumerate(asked.targets.tolist()):
            said = twin(logits[first + index], asked.request, position, need)
            assert scores.tokens[index] == said["token"] != MASK
            np.testing.assert_allclose(scores.log_odds[index], said["log_odds"], rtol=1e-4, atol=1e-4)
            for name in ("entropy", "margin"):
                if name in said:
                    np.testing.assert_allclose(getattr(scores, name)[index], said[name], rtol=1e-4, atol=1e-5)
            if told:
                logprob, top, named = said["logprobs"]
                assert told[index].logprob == pytest.approx(logprob, abs=1e-5)
                assert [token for token, _ in told[index].top] == [token for token, _ in top]
                assert [value for _, value in told[index].top] == pytest.approx([v for _, v in top], abs=1e-5)
                assert list(told[index].named) == pytest.approx(named, abs=1e-5)
        first += len(asked.targets)


@settings(deadline=None, max_examples=30)  # the twin is slow
@given(batch=batches(), seed=st.integers(0, 1000))
def test_a_request_is_scored_the_same_alone_and_in_any_batch(batch, seed):
    plans, needs = batch
    logits = random_logits(plans, seed)
    first = 0
    for asked, need, scores in zip(plans, needs, score(logits.clone(), plans, MASK, needs), strict=True):
        last = first + len(asked.targets)
        [alone] = score(logits[first:last].clone(), [asked], MASK, [need])
        for name in ("tokens", "log_odds", "entropy", "margin"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(scores, name))
        if scores.logprobs:
            every = np.full(last - first, True)
            assert list(alone.logprobs.of(every)) == list(scores.logprobs.of(every))
        first = last


@pytest.mark.parametrize("seed", range(6))
def test_a_token_is_not_penalised_for_where_it_stands_itself(seed):
    """Where decoded tokens are targets: else each would be replaced for its own sake."""
    rng = np.random.default_rng(seed)
    decoded = [(offset, int(rng.integers(0, 6))) for offset in range(8) if rng.random() < 0.7]
    own = {"presence_penalty": 1.5, "frequency_penalty": 0.7, "repetition_penalty": 1.7, "logit_bias": ((3, 0.4),)}
    kept = {name: value for name, value in own.items() if rng.random() < 0.7}
    plans = [plan(decoded=decoded, replaces_tokens=replaces_tokens, **kept) for replaces_tokens in (True, False)]
    logits, first = random_logits(plans, seed), 0
    assert len(plans[0].targets) == 8
    for asked, scores in zip(plans, score(logits.clone(), plans, MASK), strict=True):
        for index, position in enumerate(asked.targets.tolist()):
            said = twin(logits[first + index], asked.request, position, Needs())
            assert scores.tokens[index] == said["token"]
            np.testing.assert_allclose(scores.log_odds[index], said["log_odds"], rtol=1e-4, atol=1e-4)
        first += len(asked.targets)


def edited(asked, logits):
    logits = logits.clone()
    upload = Upload(logits.device)
    changes = Edits([asked], edits([asked]), upload)
    upload.send()
    changes.apply(logits)
    return logits


def test_penalties_count_the_answer_wherever_it_stands():
    logits = torch.zeros(5, VOCAB)
    asked = plan(8, decoded=[(1, 4), (6, 4), (7, 5)], frequency_penalty=0.5, presence_penalty=1.0)
    result = edited(asked, logits)
    assert (result[:, 4] == -2.0).all()
    assert (result[:, 5] == -1.5).all()
    result[:, [4, 5]] = 0
    assert torch.equal(result, logits), "nothing else, the prompt's tokens included"


def test_repetition_penalty_counts_the_prompt_too():
    logits = torch.full((7, VOCAB), 3.0)
    logits[:, 2] = -3.0
    result = edited(plan(8, decoded=[(3, 9)], repetition_penalty=2.0), logits)
    assert (result[:, [1, 9]] == 1.5).all()
    assert (result[:, 2] == -6.0).all()
    assert (result[:, [0, 3, 4]] == 3.0).all()


def test_tokens_that_end_the_answer_are_not_penalised():
    """The tail of a canvas is full of them before its text is there."""
    penalties = {"frequency_penalty": 1.0, "presence_penalty": 1.0, "repetition_penalty": 2.0}
    decoded = [(6, EOS), (7, EOS), (5, 9)]
    logits = torch.ones(5, VOCAB)
    result = edited(plan(8, decoded=decoded, stop_ids=frozenset({9}), **penalties), logits)
    assert (result[:, [EOS, 9]] == 1.0).all()
    result = edited(plan(8, decoded=decoded, ignore_eos=True, **penalties), logits)
    assert (result[:, EOS] == 0.5 - 3.0).all()


@pytest.mark.parametrize("penalty", [1e-300, 1e-40, 1e40, 1e300])
def test_penalties_beyond_float32_stay_numbers(penalty):
    logits = torch.randn(8, VOCAB)
    logits[0, 1] = 0.0
    asked = plan(repetition_penalty=penalty, temperature=1e-40, seed=1)
    assert torch.isfinite(edited(asked, logits)).all()
    for need in (Needs(entropy=True, margin=True), Needs(processed=True, entropy=True)):
        [scores] = score(logits.clone(), [asked], MASK, [need])
        assert not np.isnan([scores.log_odds, scores.entropy]).any()


@pytest.mark.parametrize("bias", [0.0, 100.0])
def test_the_mask_is_never_drawn(bias):
    asked = {"logit_bias": ((MASK, bias),), "allowed_ids": frozenset({MASK, 3, 4})}
    for temperature in (0.0, 2.0):
        [scores] = score(torch.randn(8, VOCAB), [plan(temperature=temperature, **asked)], MASK)
        assert set(scores.tokens.tolist()) <= {3, 4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("need", [Needs(), Needs(processed=True, entropy=True, margin=True), Needs(vocabulary=6)])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_one_allowed_token_is_certain_and_keeps_its_own_log_probability(dtype, need, temperature):
    logits = (torch.randn(8, VOCAB) * 3).to(dtype)
    asked = plan(allowed_ids=frozenset({7}), logprobs=2, temperature=temperature, repetition_penalty=1.5, seed=2)
    [scores] = score(logits.clone(), [asked], MASK, [need])
    assert scores.tokens.tolist() == [7] * 8
    assert scores.confidence.tolist() == [1.0] * 8
    expected = logits.double().log_softmax(-1)
    np.testing.assert_allclose(scores.logprobs.proposed, expected[:, 7], atol=1e-5)
    best = expected.clone()
    best[:, MASK] = -torch.inf
    told = list(scores.logprobs.of(np.full(8, True)))
    np.testing.assert_allclose([[v for _, v in row.top] for row in told], best.topk(2).values, atol=1e-5)


def test_the_only_token_left_is_drawn_whatever_the_noise(monkeypatch):
    """The largest hashes round to a uniform number of 1, whose noise would be -inf."""
    monkeypatch.setattr("engine.kernels.proposals.kernel", lambda: None)
    monkeypatch.setattr("engine.kernels.proposals.continued", lambda *_: torch.full((8, VOCAB), 2**32 - 1))
    [scores] = score(torch.randn(8, VOCAB), [plan(allowed_ids=frozenset({7}), temperature=1.0)], MASK)
    assert scores.tokens.tolist() == [7] * 8


def test_bad_words_give_way_where_nothing_else_is_left():
    asked = {"allowed_ids": frozenset({3, 4}), "bad_words": ((3, 3), (4, 3)), "decoded": [(0, 3)]}
    [scores] = score(torch.randn(7, VOCAB), [plan(**asked)], MASK)
    assert scores.tokens[0] == 4, "3 would complete a bad word"
    asked["decoded"] += [(2, 3)]
    [scores] = score(torch.randn(6, VOCAB), [plan(**asked)], MASK)
    assert np.isfinite(scores.log_odds[0]), "both would complete one: both may be drawn"
    assert scores.tokens[0] in (3, 4)


def test_log_probabilities_are_numbers_even_where_the_model_has_none():
    logits = torch.full((8, VOCAB), -torch.inf)
    logits[:, 2] = 1.0
    logits[4, 3] = torch.inf
    [scores] = score(logits, [plan(logprobs=20, allowed_ids=frozenset({2, 3}))], MASK)
    told = list(scores.logprobs.of(np.full(8, True)))
    values = [value for row in told for value in (row.logprob, *(value for _, value in row.top))]
    assert np.isfinite(values).all()
    assert told[0].top[0] == (2, 0.0)


def test_who_asks_for_an_edit():
    assert not is_edited(
        SamplingParams(max_tokens=1, temperature=1, top_p=0.5, min_p=0.1, logprobs=3, stop_ids=frozenset({1}))
    )
    edits = {
        "presence_penalty": -1.0,
        "frequency_penalty": 0.1,
        "repetition_penalty": 0.9,
        "logit_bias": ((1, 1.0),),
        "allowed_ids": frozenset({1}),
        "bad_words": ((1,),),
        "min_tokens": 1,
    }
    for name, value in edits.items():
        assert is_edited(SamplingParams(max_tokens=1, **{name: value})), name
