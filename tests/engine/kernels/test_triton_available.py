"""The engine on machines without Triton."""

import sys

import pytest

from engine.kernels.triton_available import has_triton


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux alone")
def test_its_kernels_are_tested_here():
    """Their tests are left out where there is no Triton; the developers' tools bring it."""
    assert has_triton()
