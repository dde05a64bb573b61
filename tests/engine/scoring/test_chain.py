"""The chain against every sequence of tokens there is, on vocabularies of eight tokens."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.scoring.chain import Chain, Draw
from engine.scoring.reach import OPEN, OpenSpan, Reach
from tests.engine.automata import AUTOMATA, STOP, VOCAB
from tests.engine.chain_twin import Twin

SIZE = 4
NAMES = st.sampled_from(sorted(AUTOMATA))
FIXED = st.lists(st.none() | st.integers(0, STOP), min_size=SIZE, max_size=SIZE)


def span(constraint, fixed, room):
    classes = [OPEN if token is None else int(constraint.classes[token]) for token in fixed]
    is_open = np.array([token is None for token in fixed])
    rows = np.where(is_open, np.cumsum(is_open) - 1, -1)
    return OpenSpan(constraint, 0, 0, np.array(classes), rows, room)


def class_columns(constraint, logits, fixed):
    """(log-sum-exp, maximum) of each class [rows, classes]."""
    rows = logits[[at for at, token in enumerate(fixed) if token is None]]
    sums, most = np.full((2, len(rows), constraint.num_classes), -np.inf)
    for token, token_class in enumerate(constraint.classes):
        sums[:, token_class] = np.logaddexp(sums[:, token_class], rows[:, token])
        most[:, token_class] = np.maximum(most[:, token_class], rows[:, token])
    return sums, most


def case(name, fixed, room, seed, scale=3.0):
    constraint = AUTOMATA[name]
    logits = np.random.default_rng(seed).normal(size=(SIZE, VOCAB)) * scale
    return constraint, logits, Twin(constraint, 0, fixed, room, logits)


@settings(deadline=None, max_examples=60)
@given(name=NAMES, fixed=FIXED, room=st.integers(0, 3), seed=st.integers(0, 999), scale=st.sampled_from([0.1, 3.0, 40]))
def test_maximum_total_and_marginals(name, fixed, room, seed, scale):
    constraint, logits, twin = case(name, fixed, room, seed, scale)
    reach = Reach([span(constraint, fixed, room)])
    assert bool(reach.is_possible()[0]) == bool(twin.valid)
    assume(twin.valid and None in fixed)
    chain, (sums, most) = Chain(reach), class_columns(constraint, logits, fixed)
    is_sum, is_best = np.array([False]), np.array([True])
    totals = chain.of_labels(sums.ravel(), is_sum)
    behind = chain.behind(totals, is_sum)
    start = reach.firsts[0], reach.starts[0]
    assert behind[start] == pytest.approx(twin.log_total, abs=1e-9)
    values = chain.behind(chain.of_labels(most.ravel(), is_best), is_best)
    assert values[start] == pytest.approx(twin.best, abs=1e-9)
    [classes] = chain.walk(most.ravel(), values, [Draw(0.0, 0, 0)])
    assert most[np.arange(len(classes)), classes].sum() == pytest.approx(twin.best, abs=1e-9)
    gains = chain.gains(totals, behind).reshape(sums.shape)
    marginals, is_open = twin.marginals(), [token is None for token in fixed]
    weights = logits[is_open] + gains[:, constraint.classes]
    weights = np.exp(weights - weights.max(axis=1, keepdims=True))
    ours = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours, marginals[is_open], atol=1e-9)
    np.testing.assert_array_equal(reach.allowed(0)[:, constraint.classes], (np.isfinite(gains))[:, constraint.classes])
