"""The chain's kernel against numpy's chain, at every width of vectors, with weights of all sizes."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.scoring.constrained import native
from engine.scoring.constrained.chain import Chain, Draw
from engine.scoring.constrained.spans import OPEN, UNSCORED, OpenSpan
from tests.engine.automata import AUTOMATA, automaton

VOCAB = 40


def random_automaton(seed):
    """Of up to 30 states, most of which lead to several others."""
    rng = np.random.default_rng(seed)
    states = int(rng.integers(2, 30))
    steps = [
        dict.fromkeys(range(VOCAB - 2), 0) | {token: int(rng.integers(states)) for token in range(VOCAB - 2)}
        if rng.random() < 0.5
        else {int(token): int(rng.integers(states)) for token in rng.integers(0, VOCAB - 2, 5)}
        for _ in range(states)
    ]
    return automaton(VOCAB, steps, rng.integers(0, states, 2).tolist(), [VOCAB - 2])


CONSTRAINTS = [*AUTOMATA.values(), *map(random_automaton, range(12))]


@settings(deadline=None, max_examples=60)
@given(
    number=st.integers(0, len(CONSTRAINTS) - 1),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 30.0, 1e3, 1e5]),
    room=st.integers(0, 4),
)
def test_it_is_what_numpy_computes(compiled, number, seed, scale, room):
    constraint, rng = CONSTRAINTS[number], np.random.default_rng(seed)
    length = int(rng.integers(1, 12))
    fixed = np.where(rng.random(length) < 0.3, rng.integers(1, constraint.num_classes, length), OPEN)
    is_scored = (fixed == OPEN) & (rng.random(length) < 0.8)
    rows = np.where(is_scored, np.cumsum(is_scored) - 1, UNSCORED)
    span = OpenSpan(constraint, 3, 0, fixed, rows, room)
    ours, theirs = native.NativeChain(span, native.Kernel(compiled)), Chain(span)
    assert ours.is_possible == theirs.is_possible
    np.testing.assert_array_equal(ours.viable, theirs.viable)
    np.testing.assert_array_equal(ours.used, theirs.used)
    assume(ours.is_possible)
    columns = rng.normal(size=(is_scored.sum(), constraint.num_classes)) * scale
    columns[rng.random(columns.shape) < 0.1] = -np.inf
    with np.errstate(divide="ignore"):
        (gains, behind), (their_gains, their_behind) = ours.gains(columns), theirs.gains(columns)
    np.testing.assert_allclose(behind, their_behind, rtol=1e-12, atol=1e-9)
    rounding = 1e-9 + 1e-15 * np.abs(behind[np.isfinite(behind)]).max()  # numpy takes the difference of such numbers
    np.testing.assert_allclose(gains, their_gains, rtol=1e-9, atol=8 * rounding)
    best, their_best = (chain.behind(columns, is_best=True) for chain in (ours, theirs))
    np.testing.assert_allclose(best, their_best, rtol=1e-12)
    for draw, onwards in ((Draw(0.0, 0, 0), best), (Draw(0.7, seed, 5), behind)):
        np.testing.assert_array_equal(ours.walk(columns, onwards, draw), theirs.walk(columns, onwards, draw))


def test_ends_of_more_states_than_numpy_keeps_memory_for(compiled):
    """The kernel must read them before their memory goes to another."""
    steps = [{0: at + 1} for at in range(2000)]
    constraint = automaton(VOCAB, [*steps, {}], [2000], [VOCAB - 2])
    for room, is_possible in ((0, False), (1989, False), (1990, True)):
        span = OpenSpan(constraint, 0, 0, np.full(10, OPEN), np.arange(10), room)
        chain = native.NativeChain(span, native.Kernel(compiled))
        assert chain.is_possible == is_possible
        np.testing.assert_array_equal(chain.viable, Chain(span).viable)


def test_without_a_compiler_numpy_computes_it(monkeypatch):
    monkeypatch.setattr(native, "kernel", lambda: None)
    span = OpenSpan(CONSTRAINTS[0], 0, 0, np.full(3, OPEN), np.arange(3), 0)
    assert type(native.chain_of(span)) is Chain


@pytest.mark.parametrize("name", ["weigh_behind", "weigh_classes", "walk", "reach", "log_sums"])
def test_a_kernel_that_computes_something_else_is_not_taken(compiled, name, monkeypatch):
    own = native.Kernel(compiled)
    assert native._agrees(own)
    monkeypatch.setattr(own, name, lambda *_: 0)
    assert not native._agrees(own)
