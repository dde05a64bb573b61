"""Targets a part at a time, against all of them at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels.proposals import best_token
from tests.engine.score_twin import MASK, batches, random_logits
from tests.engine.scored import StoredLogits, score


class Recorded(StoredLogits):
    """Notes how many rows are asked for at once."""

    asked = ()

    def __getitem__(self, some):
        part = super().__getitem__(some)
        Recorded.asked = (*Recorded.asked, len(part))
        return part

    def propose(self, some, mask_id):
        return best_token(self[some], mask_id)

    def part(self, indices):
        return Recorded(self.rows[indices], self.proposed_at_once)


@settings(deadline=None, max_examples=30)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    batch=batches(),
    seed=st.integers(0, 1000),
    at_once=st.integers(1, 12),
)
def test_targets_are_scored_in_parts_as_they_are_at_once(dtype, batch, seed, at_once):
    """Whoever's they are: a part may hold many requests, and a request may lie in many parts."""
    plans, needs = batch
    logits = random_logits(plans, seed).to(dtype)
    whole = score(logits.clone(), plans, MASK, needs)
    recorded, Recorded.asked = Recorded(logits.clone(), at_once), ()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("engine.scoring.slices.TARGETS_AT_ONCE", at_once)
        in_halves = score(recorded, plans, MASK, needs)
    assert sum(Recorded.asked) == len(logits)
    assert max(Recorded.asked) <= at_once
    for asked, some, every in zip(plans, in_halves, whole, strict=True):
        assert some.positions is asked.targets
        for name in ("tokens", "log_odds", "entropy", "margin"):
            np.testing.assert_array_equal(getattr(some, name), getattr(every, name))
        assert (some.logprobs is None) == (every.logprobs is None)
        if some.logprobs and every.logprobs:
            for name in ("proposed", "named", "tokens", "values", "num_top"):
                np.testing.assert_array_equal(getattr(some.logprobs, name), getattr(every.logprobs, name))
