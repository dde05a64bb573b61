"""Scores of edited logits against a slow twin that takes one request, one position and one token at a time."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checks import check
from engine.config import ModelSpec
from engine.edits import edit, is_edited
from engine.errors import InvalidRequest
from engine.noise import hashed
from engine.params import DiffusionParams, SamplingParams
from engine.plan import Needs, StepPlan
from engine.request import Request, Submission
from engine.scores import score

VOCAB, MASK, EOS = 24, 23, 22
SPEC = ModelSpec(family="toy", vocab_size=VOCAB, mask_id=MASK, eos_ids=frozenset({EOS}), max_model_len=4096)
PROMPT = (1, 2, MASK, EOS, 1)


def plan(num_targets=8, decoded=(), forwards=0, **sampling):
    """A canvas with `decoded` (offset behind the prompt, token) pairs in it; what is left are its targets."""
    sampling = SamplingParams(max_tokens=num_targets, **sampling)
    diffusion = DiffusionParams(block_length=num_targets)
    submission = Submission(request_id="r", prompt_ids=PROMPT, sampling=sampling, diffusion=diffusion)
    check(submission, SPEC, 4096)
    request = Request.new(submission, SPEC)
    request.forwards = forwards
    for offset, token in decoded:
        request.ids[len(PROMPT) + offset], request.masked[len(PROMPT) + offset] = token, False
        request.history.tokens.append(token)
    return StepPlan(request, np.arange(request.end), np.full(request.end, request.end), request.targets)


def twin_edit(raw, request, position):
    """The edited logits of one position, token by token."""
    asked, stops, counts = request.sampling, request.stop_ids, Counter(request.history.tokens)
    seen = {int(token) for token, masked in zip(request.ids, request.masked, strict=True) if not masked}
    edited = []
    for token, logit in enumerate(raw.tolist()):
        if token not in stops:
            if token in seen:
                divides = logit > 0
                logit = logit / asked.repetition_penalty if divides else logit * asked.repetition_penalty
            logit -= asked.frequency_penalty * counts[token] + asked.presence_penalty * (counts[token] > 0)
        logit += sum(bias for biased, bias in asked.logit_bias if biased == token)
        is_early_stop = token in stops and position < len(PROMPT) + asked.min_tokens
        is_foreign = asked.allowed_ids is not None and token not in asked.allowed_ids
        edited.append(-math.inf if is_early_stop or is_foreign or (token,) in asked.bad_words else logit)
    completing = {
        word[place]
        for word in asked.bad_words
        for place in range(len(word))
        if len(word) > 1 and lacks_only(word, place, request, position - place)
    }
    left = [token for token in range(VOCAB) if edited[token] > -math.inf and token != MASK]
    if set(left) - completing:
        edited = [-math.inf if token in completing else logit for token, logit in enumerate(edited)]
    return edited


def lacks_only(word, place, request, start):
    others = [(start + i, token) for i, token in enumerate(word) if i != place]
    return all(0 <= at < request.end and not request.masked[at] and request.ids[at] == token for at, token in others)


def softmax(logits):
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def twin_narrow(logits, asked):
    """Those of the tempered distribution that top_p, top_k and min_p keep, each by its definition; others are -inf."""
    p = softmax([logit / (asked.temperature or 1.0) for logit in logits])
    order, total, kept = sorted(range(VOCAB), key=lambda token: -p[token]), 0.0, set()
    for token in order:
        if total > asked.top_p:
            break
        kept.add(token)
        total += p[token]
    best = next(token for token in order if token != MASK)
    kept &= set(order[: asked.top_k or VOCAB]) & {token for token in order if p[token] >= asked.min_p * p[best]}
    return [logit if token in kept | {best} else -math.inf for token, logit in enumerate(logits)]


def gumbel(asked, position, step, token):
    uniform = torch.tensor((hashed(asked.seed, position, step, token) + 0.5) / 2.0**32, dtype=torch.float32)
    return float(-torch.log(-torch.log1p(-uniform)))


def twin(raw, request, position, need):
    """Everything that is said of one position."""
    asked = request.sampling
    edited = twin_edit(raw, request, position)
    narrowed = twin_narrow(edited, asked)
    drawable = [token for token in range(VOCAB) if token != MASK]
    token = max(drawable, key=lambda token: edited[token])
    if asked.temperature:
        token = max(
            (token for token in drawable if narrowed[token] > -math.inf),
            key=lambda token: narrowed[token] + asked.temperature * gumbel(asked, position, request.forwards, token),
        )
    seen = [logit / (asked.temperature or 1.0) for logit in narrowed] if need.processed else edited
    if need.vocabulary:
        least = sorted(seen, reverse=True)[need.vocabulary - 1]
        p = softmax([logit if logit >= least else -math.inf for logit in seen])
    else:
        p = softmax(seen)
    others = sum(p[other] for other in range(VOCAB) if other != token)
    said = {
        "token": token,
        "log_odds": math.log(p[token] / others) if others and p[token] else math.copysign(math.inf, p[token] - 0.5),
    }
    if need.entropy:
        said["entropy"] = -sum(q * math.log(q) for q in p if q > 0)
    if need.margin:
        first, second = sorted(p, reverse=True)[:2]
        said["margin"] = second - first if p[MASK] == first else first - second
    logprobs = raw.double().log_softmax(-1)
    best = sorted(drawable, key=lambda token: -logprobs[token])[: asked.logprobs or 0]
    said["logprobs"] = (float(logprobs[token]), [(token, float(logprobs[token])) for token in best])
    return said


SMALL = st.integers(0, 5)
WORDS = st.lists(st.lists(SMALL, min_size=1, max_size=3).map(tuple), max_size=6).map(tuple)
SAMPLING = st.fixed_dictionaries(
    {
        "num_targets": st.integers(4, 8),
        "decoded": st.dictionaries(st.integers(0, 7), SMALL | st.just(EOS), max_size=6),
        "forwards": st.integers(0, 3),
        "temperature": st.sampled_from([0.0, 0.0, 0.4, 1.3]),
        "seed": st.integers(0, 2**40),
    },
    optional={
        "top_p": st.sampled_from([0.3, 0.9]),
        "top_k": st.integers(1, 5),
        "min_p": st.sampled_from([0.05, 0.4, 1.0]),
        "presence_penalty": st.floats(-2, 2, width=16),
        "frequency_penalty": st.floats(-2, 2, width=16),
        "repetition_penalty": st.sampled_from([0.5, 1.2, 3.0]),
        "logit_bias": st.lists(st.tuples(st.integers(0, VOCAB - 1), st.floats(-3, 3, width=16)), max_size=5).map(tuple),
        "allowed_ids": st.frozensets(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
        "bad_words": WORDS,
        "min_tokens": st.integers(1, 8),
        "stop_ids": st.frozensets(SMALL, max_size=2),
        "ignore_eos": st.booleans(),
        "logprobs": st.integers(0, 20),
    },
)
NEEDS = st.sampled_from(
    [
        Needs(),
        Needs(entropy=True),
        Needs(entropy=True, margin=True),
        Needs(vocabulary=6),
        Needs(processed=True, entropy=True),
        Needs(processed=True, margin=True),
    ]
)


@st.composite
def batches(draw):
    """(plans, needs): a batch of requests that may be served."""
    plans = []
    for asked in draw(st.lists(SAMPLING, min_size=1, max_size=5)):
        asked["decoded"] = [(o, t) for o, t in asked["decoded"].items() if o < asked["num_targets"]][:-1]
        asked["min_tokens"] = min(asked.get("min_tokens", 0), asked["num_targets"])
        try:
            plans.append(plan(**asked))
        except InvalidRequest:
            plans.append(plan(decoded=asked["decoded"], num_targets=asked["num_targets"]))
    return plans, draw(st.lists(NEEDS, min_size=len(plans), max_size=len(plans)))


def random_logits(plans, seed):
    torch.manual_seed(seed)
    return torch.randn(sum(len(plan.targets) for plan in plans), VOCAB) * 3


@settings(deadline=None)  # the twin is slow
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
                logprob, top = said["logprobs"]
                assert told[index].logprob == pytest.approx(logprob, abs=1e-5)
                assert [token for token, _ in told[index].top] == [token for token, _ in top]
                assert [value for _, value in told[index].top] == pytest.approx([v for _, v in top], abs=1e-5)
        first += len(asked.targets)


@settings(deadline=None)  # the twin is slow
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


class Recorded:
    """Logits that know which rows they were asked for."""

    def __init__(self, logits):
        self.logits, self.asked = logits, []

    def __getitem__(self, some):
        part = self.logits[some]
        self.asked.append(len(part))
        return part


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000), at_once=st.integers(1, 12))
def test_targets_are_scored_in_parts_as_they_are_at_once(dtype, batch, seed, at_once):
    """Whoever's they are: a part may hold many requests, and a request may lie in many parts."""
    plans, needs = batch
    logits = random_logits(plans, seed).to(dtype)
    whole = score(logits.clone(), plans, MASK, needs)
    recorded = Recorded(logits.clone())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("engine.parts.TARGETS_AT_ONCE", at_once)
        in_parts = score(recorded, plans, MASK, needs)
    assert sum(recorded.asked) == len(logits)
    assert max(recorded.asked) == min(at_once, len(logits))
    for asked, some, every in zip(plans, in_parts, whole, strict=True):
        assert some.positions is asked.targets
        for name in ("tokens", "log_odds", "entropy", "margin"):
            np.testing.assert_array_equal(getattr(some, name), getattr(every, name))
        assert (some.logprobs is None) == (every.logprobs is None)
        if some.logprobs and every.logprobs:
            for name in ("proposed", "tokens", "values", "num_top"):
                np.testing.assert_array_equal(getattr(some.logprobs, name), getattr(every.logprobs, name))


def edited(asked, logits):
    logits = logits.clone()
    edit(logits, [asked])
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
    monkeypatch.setattr("engine.sampling.hashed", lambda *_: torch.full((8, VOCAB), 2**32 - 1))
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
