"""The arithmetic behind rows: intervals and sums."""

import pytest

from server.eval.policy import PolicyPair
from server.eval.score import Row, pooled, wilson


def test_wilson():
    assert wilson(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1)


def test_pooling_sums_and_keeps_what_is_unknown_unknown():
    row = Row(task="a", policy=PolicyPair(), n=4, correct=3, agreed=2, tokens=10, forwards=5, rows=40, seconds=1.0)
    unknown = Row(
        task="b", policy=PolicyPair(), n=6, correct=6, agreed=None, tokens=7, forwards=None, rows=None, seconds=1
    )
    total = pooled([row, unknown])
    assert (total.n, total.accuracy, total.tokens) == (10, 0.9, 17)
    assert total.agreement is total.tokens_per_forward is total.rows_per_token is None
    assert (row.tokens_per_forward, row.rows_per_token, row.agreement) == (2, 4, 0.5)
