"""The chain against every sequence of tokens there is, on vocabularies of eight tokens."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.scoring.constrained.chain import Draw
from engine.scoring.constrained.native import chain_of, log_sum_exp
from engine.scoring.constrained.spans import OPEN, OpenSpan
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


@settings(deadline=None, max_examples=25)
@given(name=NAMES, fixed=FIXED, room=st.integers(0, 3), seed=st.integers(0, 999), scale=st.sampled_from([0.1, 3.0, 40]))
def test_maximum_total_and_marginals(name, fixed, room, seed, scale):
    constraint, logits, twin = case(name, fixed, room, seed, scale)
    chain, (sums, most) = chain_of(span(constraint, fixed, room)), class_columns(constraint, logits, fixed)
    assert chain.is_possible == bool(twin.valid)
    assume(twin.valid and None in fixed)
    gains, behind = chain.gains(sums)
    np.testing.assert_array_equal(behind, chain.behind(sums, is_best=False))
    assert behind[0, 0] == pytest.approx(twin.log_total, abs=1e-9)
    values = chain.behind(most, is_best=True)
    assert values[0, 0] == pytest.approx(twin.best, abs=1e-9)
    classes = chain.walk(most, values, Draw(0.0, 0, 0))
    assert most[np.arange(len(classes)), classes].sum() == pytest.approx(twin.best, abs=1e-9)
    marginals, is_open = twin.marginals(), [token is None for token in fixed]
    weights = logits[is_open] + gains[:, constraint.classes]
    weights = np.exp(weights - weights.max(axis=1, keepdims=True))
    ours = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours, marginals[is_open], atol=1e-9)
    np.testing.assert_array_equal(chain.allowed()[:, constraint.classes], (np.isfinite(gains))[:, constraint.classes])


def test_log_sum_exp(passes):
    values = np.random.default_rng(0).normal(size=(5, 13)) * [[1], [1], [1e3], [1e300], [1]]
    values[1] = -np.inf
    values[2, 3:9] = -np.inf
    expected = np.logaddexp.reduce(values, axis=1)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(log_sum_exp(values.copy()), expected, rtol=1e-13)
