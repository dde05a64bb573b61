"""What Triton's interpreter accepts, its compiler may not: both know the kernels, only the latter knows GPUs."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("triton_without_gpu.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "shared"),  # the latter by the CUDA C++ Programming Guide
    [
        pytest.param(90, 227 * 1024, id="H100"),
        pytest.param(86, 99 * 1024, id="RTX 30"),  # with instructions as an A100 has them, and less memory
    ],
)
def test_kernels_compile_and_fit_in_shared_memory(architecture, shared, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, str(architecture), str(shared)],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    compiled = Counter(line.split()[0] for line in done.stdout.splitlines())
    scoring = {"_score_span": 2, "_merge_scores": 2, "_draw_in_span": 1, "_merge_draws": 1}
    assert compiled == {"_attend": 9, "_write": 2, **scoring}
