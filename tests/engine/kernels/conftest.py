"""What tests of kernels share. The tests of Triton's are left out where there is no Triton."""

import pytest

from engine.kernels import library
from engine.kernels.triton_available import has_triton

collect_ignore = (
    [] if has_triton() else ["test_triton_attention.py", "test_triton_proposals.py", "test_triton_compiler.py"]
)
WIDTHS = ["the machine's", *(pytest.param(width, marks=pytest.mark.slow) for width in (4, 8, 16))]
"""Floats in a vector: of NEON and SSE, AVX and AVX-512. Compilers make the wide ones of narrow ones where they must."""


@pytest.fixture(scope="session", params=WIDTHS)
def compiled(request, tmp_path_factory):
    """The path of the CPU's library for vectors of each width. The machine's own is the one that the engine uses."""
    if not isinstance(request.param, int):
        return library.library()
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    library.compile_to(path, [f"-DLANES={request.param}"])
    return path
