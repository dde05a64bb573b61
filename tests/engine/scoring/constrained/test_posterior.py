"""Proposals under a constraint, from logits to scores: against every sequence of tokens there is."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.core.config import ModelSpec
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Needs
from engine.scoring.constrained.native import is_completable
from tests.engine.automata import AUTOMATA, MASK, STOP, VOCAB
from tests.engine.chain_twin import Twin
from tests.engine.scored import score

SIZE = 4
SPEC = ModelSpec(family="toy", vocab_size=VOCAB, mask_id=MASK, eos_ids=frozenset({STOP}), max_model_len=64)
NAMES = st.sampled_from(sorted(AUTOMATA))
FIXED = st.lists(st.none() | st.integers(0, STOP), min_size=SIZE, max_size=SIZE)


def case(name, fixed, room, seed, scale=3.0):
    constraint = AUTOMATA[name]
    logits = np.random.default_rng(seed).normal(size=(SIZE, VOCAB)) * scale
    return constraint, logits, Twin(constraint, 0, fixed, room, logits)


def plan(constraint, fixed, room, length=SIZE, prompt=(1, 2), **sampling):
    guidance = sampling.pop("guidance", "posterior")
    step = sampling.pop("step", 0)
    request = Request.new(
        Submission(
            request_id="r",
            prompt_ids=list(prompt),
            sampling=SamplingParams(max_tokens=length + room, constraint=constraint, **sampling),
            diffusion=DiffusionParams(block_length=length, guidance=guidance),
        ),
        SPEC,
    )
    request.decoding_steps = step
    for at, token in enumerate(fixed, len(prompt)):
        if token is not None:
            request.ids[at], request.masked[at] = token, False
    rows = np.arange(request.canvas_end)
    return StepPlan(request, rows, np.full(len(rows), request.canvas_end), request.targets)


def logits_of(plans, logits):
    """The targets' rows of each plan's logits [positions of the block, vocab]."""
    parts = [each[one.targets - one.request.block.start] for one, each in zip(plans, logits, strict=True)]
    return torch.from_numpy(np.concatenate(parts)).float()


@settings(deadline=None, max_examples=20)
@given(name=NAMES, fixed=FIXED, room=st.integers(0, 3), seed=st.integers(0, 999), scale=st.sampled_from([0.1, 3.0]))
def test_scores_are_of_the_posterior(name, fixed, room, seed, scale):
    constraint, logits, twin = case(name, fixed, room, seed, scale)
    assume(twin.valid and None in fixed)
    asked = plan(constraint, fixed, room, logprobs=0)
    assume(constraint.advanced(0, np.array(fixed[: fixed.index(None)], np.int64)) != constraint.end)
    [scores] = score(logits_of([asked], [logits]), [asked], MASK, [Needs(entropy=True, margin=True)])
    tokens = list(fixed)
    for position, token in zip(scores.positions - 2, scores.tokens, strict=True):
        tokens[position] = int(token)
    assert tuple(tokens) in set(twin.valid)
    assert twin.weight(tokens) == pytest.approx(twin.best, abs=1e-4)
    marginals, raw = twin.marginals()[scores.positions - 2], logits[scores.positions - 2]
    proposed = marginals[np.arange(len(marginals)), scores.tokens]
    np.testing.assert_allclose(scores.confidence, proposed, atol=1e-5)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(marginals > 0, marginals * np.log(marginals), 0.0).sum(axis=1)
    np.testing.assert_allclose(scores.entropy, entropy, atol=1e-5)
    first, second = np.sort(marginals, axis=1)[:, :-3:-1].T
    np.testing.assert_allclose(scores.margin, first - second, atol=1e-5)
    expected = raw - np.logaddexp.reduce(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(scores.logprobs.proposed, expected[np.arange(len(raw)), scores.tokens], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fixed", "room", "temperature"),
    [
        ("a*b", [None] * 4, 0, 1.0),
        ("(0|1|2)*", [None, 1, None, None], 1, 0.6),
        ("0(1|2){2,4}|35", [None] * 4, 1, 1.0),
        ("even 0s, any others but no 4 behind a 5", [None, None, 0, None], 2, 0.6),
    ],
)
def test_draws_have_the_posterior_s_frequencies(name, fixed, room, temperature, passes):
    """A chi-square of whole blocks: steps of one request are as many independent draws."""
    constraint, logits, _ = case(name, fixed, room, 3, 1.0)
    twin = Twin(constraint, 0, fixed, room, logits / temperature)
    count = 400 if passes == "kernels" else 60  # numpy draws the same (tests/engine/kernels/test_chain.py)
    plans = [plan(constraint, fixed, room, temperature=temperature, seed=5, step=step) for step in range(count)]
    drawn = Counter()
    for scores in score(logits_of(plans, [logits] * count), plans, MASK):
        tokens = list(fixed)
        for position, token in zip(scores.positions - 2, scores.tokens, strict=True):
            tokens[position] = int(token)
        drawn[tuple(tokens)] += 1
    assert set(drawn) <= set(twin.valid)
    expected = {
        tokens: count * math.exp(weight - twin.log_total)
        for tokens, weight in zip(twin.valid, twin.weights, strict=True)
    }
    common = [tokens for tokens, times in expected.items() if times >= 5]
    rest, theirs = (sum(table[tokens] for tokens in twin.valid if tokens not in common) for table in (drawn, expected))
    statistic = sum((drawn[tokens] - expected[tokens]) ** 2 / expected[tokens] for tokens in common)
    statistic += (rest - theirs) ** 2 / theirs if theirs > 1 else 0.0
    assert statistic < len(common) + 4 * math.sqrt(2 * len(common)) + 4


def test_where_the_model_says_mask_its_lead_is_none():
    """The model's own spread, `guidance: model`: as without a constraint, a mask that leads makes a margin negative."""
    logits = np.random.default_rng(2).normal(size=(SIZE, VOCAB))
    logits[::2, MASK] += 9
    guided = plan(AUTOMATA["(0|1|2)*"], [None] * SIZE, 0, guidance="model")
    free = plan(None, [None] * SIZE, 0)
    need = Needs(entropy=True, margin=True)
    [ours, theirs] = score(logits_of([guided, free], [logits] * 2), [guided, free], MASK, [need] * 2)
    assert (theirs.margin < 0).tolist() == [True, False] * (SIZE // 2)
    np.testing.assert_allclose(ours.valid.margin, theirs.margin, atol=1e-6)
    np.testing.assert_allclose(ours.valid.entropy, theirs.entropy, atol=1e-6)
    assert MASK not in ours.valid.tokens


NEEDS = [Needs(), Needs(entropy=True), Needs(margin=True), Needs(processed=True, entropy=True), Needs(vocabulary=5)]


def crowd(count, seed):
    """Plans of all kinds, and unconstrained ones among them, with needs and logits."""
    rng = np.random.default_rng(seed)
    plans, needs, logits = [], [], []
    for number in range(count):
        name = sorted(AUTOMATA)[number % len(AUTOMATA)]
        sampling = {
            "temperature": float(rng.choice([0.0, 0.0, 0.7, 1.0, 2.0])),
            "seed": number,
            "top_p": float(rng.choice([1.0, 0.8])),
            "logprobs": rng.choice([None, 2]),
            "guidance": str(rng.choice(["posterior", "model"])),
        }
        length = int(rng.integers(4, 9))
        is_free = number % 4 == 3
        one = plan(None if is_free else AUTOMATA[name], [None] * length, int(rng.integers(0, 3)), length, **sampling)
        plans.append(one)
        needs.append(NEEDS[number % len(NEEDS)])
        logits.append(rng.normal(size=(length, VOCAB)) * 4)
        if not is_free:  # some of a valid block stands already
            [valid] = score(logits_of([one], [logits[-1]]), [one], MASK)
            valid = valid.valid or valid
            taken = rng.random(len(valid.tokens)) < 0.4
            taken[int(rng.integers(length))] = False
            one.request.ids[valid.positions[taken]] = valid.tokens[taken]
            one.request.masked[valid.positions[taken]] = False
            plans[-1] = replace(one, targets=one.request.targets)
    return plans, needs, logits


@pytest.mark.parametrize("at_once", [256, 7])
def test_a_constrained_request_is_scored_the_same_alone_and_in_a_batch(at_once, monkeypatch):
    """Bit for bit, and however its targets are cut into slices."""
    plans, needs, logits = crowd(24, 0)
    alone = [
        score(logits_of([one], [each]), [one], MASK, [need])[0]
        for one, need, each in zip(plans, needs, logits, strict=True)
    ]
    monkeypatch.setattr("engine.scoring.slices.TARGETS_AT_ONCE", at_once)
    for ours, theirs in zip(score(logits_of(plans, logits), plans, MASK, needs), alone, strict=True):
        assert_same(ours, theirs)


def assert_same(ours, theirs):
    for name in ("positions", "tokens", "log_odds", "entropy", "margin"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    if theirs.logprobs is not None:
        np.testing.assert_array_equal(ours.logprobs.proposed, theirs.logprobs.proposed)
    assert (ours.valid is None) == (theirs.valid is None)
    if theirs.valid is not None:
        assert_same(ours.valid, theirs.valid)


def test_unconstrained_neighbours_are_scored_as_without_constraints():
    plans, needs, logits = crowd(24, 1)
    together = score(logits_of(plans, logits), plans, MASK, needs)
    free = [number for number, one in enumerate(plans) if one.request.constraint is None]
    only = score(
        logits_of([plans[n] for n in free], [logits[n] for n in free]),
        [plans[n] for n in free],
        MASK,
        [needs[n] for n in free],
    )
    for number, theirs in zip(free, only, strict=True):
        assert_same(together[number], theirs)


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_a_low_temperature_draws_the_best_block(scale):
    """Also where everything valid is far less probable than e^-600."""
    constraint, logits, twin = case("0(1|2){2,4}|35", [None] * 4, 1, 7, scale)
    asked = plan(constraint, [None] * 4, 1, temperature=1e-4, seed=3)
    [scores] = score(logits_of([asked], [logits]), [asked], MASK)
    assert twin.weight(scores.tokens.tolist()) == pytest.approx(twin.best, rel=1e-5)


@pytest.mark.parametrize("narrowing", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}])
def test_narrowing_looks_at_what_may_stand_there(narrowing):
    """The best token of each position that any valid block has there, wherever such a block exists."""
    constraint, logits, twin = case("(0|1|2)*", [None] * 4, 0, 2)
    allowed = twin.marginals() > 0
    best = np.where(allowed, logits, -np.inf).argmax(axis=1)
    asked = plan(constraint, [None] * 4, 0, temperature=1.0, **narrowing)
    [scores] = score(logits_of([asked], [logits]), [asked], MASK)
    assert scores.tokens.tolist() == best.tolist()


def test_logits_that_are_not_numbers_spoil_their_own_request_alone():
    plans, needs, logits = crowd(8, 2)
    clean = score(logits_of(plans, logits), plans, MASK, needs)
    logits[0][:] = np.nan
    spoilt = score(logits_of(plans, logits), plans, MASK, needs)
    assert np.isnan(spoilt[0].log_odds).all()
    for ours, theirs in zip(spoilt[1:], clean[1:], strict=True):
        assert_same(ours, theirs)


@settings(deadline=None, max_examples=20)
@given(
    name=NAMES, seed=st.integers(0, 999), room=st.integers(0, 2), scored=st.lists(st.booleans(), min_size=4, max_size=4)
)
def test_where_only_some_positions_are_scored_the_block_stays_completable(name, seed, room, scored):
    """Whatever is taken of the proposals, and however often: the shifted first token, a sub-block, d2's choice."""
    rng = np.random.default_rng(seed)
    one = plan(AUTOMATA[name], [None] * SIZE, room, temperature=float(rng.choice([0.0, 1.0])), seed=seed)
    assume(AUTOMATA[name].least_tokens <= SIZE + room)
    request = one.request
    while request.masked[2 : 2 + SIZE].any():
        targets = request.targets[[scored[position - 2] for position in request.targets]]
        targets = targets if len(targets) else request.targets[:1]
        asked = replace(one, targets=targets)
        [scores] = score(logits_of([asked], [rng.normal(size=(SIZE, VOCAB)) * 3]), [asked], MASK)
        assert is_completable(request, scores.positions, scores.tokens)
        taken = rng.random(len(targets)) < 0.5
        taken[rng.integers(len(targets))] = True
        assert is_completable(request, scores.positions[taken], scores.tokens[taken])
        request.ids[targets[taken]], request.masked[targets[taken]] = scores.tokens[taken], False
        request.decoding_steps += 1
        stops = np.flatnonzero((request.ids == STOP) & ~request.masked)
        if len(stops) and not request.masked[2 : stops[0]].any():
            break
    assert is_completable(request, np.empty(0, np.int64), np.empty(0, np.int64))


def test_a_position_without_logits_says_nothing():
    """The first token is the model's own, among those that may stand there."""
    constraint, logits, twin = case("even 0s, any others but no 4 behind a 5", [None] * 4, 2, 4)
    whole = plan(constraint, [None] * 4, 2)
    asked = replace(whole, targets=whole.targets[:1])
    [scores] = score(logits_of([asked], [logits]), [asked], MASK)
    allowed = np.flatnonzero(twin.marginals()[0] > 0)
    weights = np.exp(logits[0, allowed])
    assert scores.tokens.tolist() == [allowed[weights.argmax()]]
    assert scores.confidence[0] == pytest.approx(weights.max() / weights.sum(), abs=1e-6)
