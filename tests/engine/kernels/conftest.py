"""Leaves out the tests of Triton's kernels where there is no Triton."""

from engine.kernels.triton_available import has_triton

collect_ignore = (
    [] if has_triton() else ["test_triton_attention.py", "test_triton_proposals.py", "test_triton_compiler.py"]
)
