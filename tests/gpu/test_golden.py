"""What the published samplers generated, token for token in float32."""

from pathlib import Path

import pytest

from engine.bench.gpu.golden import check, check_graphs
from engine.bench.gpu.report import Verdict

pytestmark = pytest.mark.gpu

LLADA_TINY = Path(__file__).parents[1] / "data" / "llada-tiny"


@pytest.mark.parametrize("asked", [check, check_graphs])
def test_golden_rows(device, asked):
    outcome = asked(LLADA_TINY, str(device))
    assert outcome.verdict == Verdict.OK, outcome.said
