"""Clients in JavaScript, which `make tools` installs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / ".tools"
MODULES = TOOLS / "javascript" / "node_modules"
NODE = shutil.which("node", path=os.pathsep.join([str(TOOLS / "bin"), os.environ["PATH"]]))
pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parent / "javascript"
SORTED = "Sorted: 3 5 7 12."


@pytest.mark.parametrize(
    ("script", "lines"),
    [("openai", [SORTED] * 3 + ["true"]), ("ai", ([SORTED] * 2 + ["true"] * 3) * 2)],
)
def test_a_client(demo_server, script, lines):
    assert NODE, "Node.js is not here; `make tools` fetches it"
    assert MODULES.exists(), "the clients are not here; `make tools` fetches them"
    run = subprocess.run(
        [NODE, SCRIPTS / f"{script}.cjs"],
        env={**os.environ, "NODE_PATH": str(MODULES), "URL": demo_server},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.splitlines() == lines, run.stderr
