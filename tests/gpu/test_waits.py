"""A step's one upload, one read and one wait, and its launches, however many requests share it."""

import pytest

from engine.bench.gpu.report import Verdict
from engine.bench.gpu.waits import check

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("requests", [1, 16, 64])
def test_a_block_step(device, requests):
    outcome = check("small", device, requests)
    assert outcome.verdict == Verdict.OK, outcome.said
