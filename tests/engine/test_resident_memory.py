"""The process holds as much memory after 750 requests of all shapes as after 250."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.kernels import native

SCRIPT = Path(__file__).with_name("mixed_requests.py")
REQUESTS = 750


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(native.kernel() is None, reason="no C++ compiler: torch's attention keeps programs of its own")
def test_memory_is_flat_over_mixed_requests(llada_tiny):
    printed = subprocess.run(
        [sys.executable, str(SCRIPT), str(llada_tiny), str(REQUESTS)], capture_output=True, text=True, check=True
    ).stdout
    held = {int(requests): int(mib) for requests, mib in (line.split() for line in printed.splitlines())}
    assert max(held) == REQUESTS
    assert held[REQUESTS] - held[0] < 300, "programs for all numbers of rows; without a bound on these it is 700"
    assert held[REQUESTS] - held[250] < 27, "55 KiB a request"
