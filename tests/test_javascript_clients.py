"""Clients in JavaScript, where they are installed: NODE_PATH is the `node_modules` of a folder with
`npm install openai ai @ai-sdk/openai @ai-sdk/openai-compatible zod`.
"""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("NODE_PATH" not in os.environ, reason="needs Node.js and NODE_PATH"),
]
SCRIPTS = Path(__file__).parent / "javascript"
SORTED = "Sorted: 3 5 7 12."


@pytest.mark.parametrize(
    ("script", "lines"),
    [("openai", [SORTED] * 3 + ["true"]), ("ai", ([SORTED] * 2 + ["true"] * 3) * 2)],
)
def test_a_client(demo_server, script, lines):
    run = subprocess.run(
        ["node", SCRIPTS / f"{script}.cjs"],
        env={**os.environ, "URL": demo_server},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.splitlines() == lines, run.stderr
