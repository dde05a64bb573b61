"""Whether Triton is installed. torch brings it along for CUDA on Linux, its builds for CPUs do not.

Modules whose name begins with `triton_` hold kernels and import it; what runs without CUDA imports none of them.
"""

from importlib.util import find_spec


def has_triton() -> bool:
    """Whether it can be imported."""
    return find_spec("triton") is not None
