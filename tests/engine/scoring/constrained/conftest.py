"""Tests of constraints run by the kernels and by numpy."""

import pytest

from engine.scoring.constrained import native


@pytest.fixture(params=["kernels", "numpy"], autouse=True, scope="module")
def passes(request):
    """By which the chain is computed: both must be what the twin says."""
    with pytest.MonkeyPatch.context() as patch:
        assert native.kernel(), "this machine has no compiler"
        if request.param == "numpy":
            patch.setattr(native, "kernel", lambda: None)
        yield request.param
