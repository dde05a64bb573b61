"""The engine on machines without Triton."""

import subprocess
import sys


def test_the_engine_needs_no_triton():
    script = (
        "import sys; sys.modules['triton'] = None\n"  # an import of it raises ImportError
        "import engine\n"
        "from engine.kernels.triton_available import has_triton\n"
        "assert not has_triton()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
