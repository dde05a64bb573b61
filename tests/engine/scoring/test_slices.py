"""Targets a part at a time, against all of them at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scoring.scores import score
from tests.engine.score_twin import MASK, batches, random_logits


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
        patched.setattr("engine.scoring.slices.TARGETS_AT_ONCE", at_once)
        in_halves = score(recorded, plans, MASK, needs)
    assert sum(recorded.asked) == len(logits)
    assert max(recorded.asked) == min(at_once, len(logits))
    for asked, some, every in zip(plans, in_halves, whole, strict=True):
        assert some.positions is asked.targets
        for name in ("tokens", "log_odds", "entropy", "margin"):
            np.testing.assert_array_equal(getattr(some, name), getattr(every, name))
        assert (some.logprobs is None) == (every.logprobs is None)
        if some.logprobs and every.logprobs:
            for name in ("proposed", "tokens", "values", "num_top"):
                np.testing.assert_array_equal(getattr(some.logprobs, name), getattr(every.logprobs, name))
