"""`python -m tests.faulty_server ...`: `unmask serve` with an engine whose model fails on purpose.

A prompt that holds one of the marks below makes the forwards that see it fail. `faulty_server` runs it for a test.
"""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

import server.commands.serve
from engine.execution.runner import Runner
from server.cli import main

FAULT = [201, 7, 201, 9, 201]
"""Every forward with it fails."""
OUT_OF_MEMORY = [203, 7, 203, 9, 203]
"""The first forward with it runs out of memory."""
DEATH = [205, 7, 205, 9, 205]
"""The engine's thread ends."""
STANDSTILL = [207, 7, 207, 9, 207]
"""The engine's thread stops, and does not come back."""
load = server.commands.serve.load


class FaultyRunner(Runner):
    """A runner with bad luck."""

    memory_is_short = True

    def forward(self, batch):
        ids = batch.ids.tolist()
        if holds(ids, FAULT):
            raise RuntimeError("injected fault")
        if self.memory_is_short and holds(ids, OUT_OF_MEMORY):
            self.memory_is_short = False
            raise torch.OutOfMemoryError("injected: CUDA out of memory")
        if holds(ids, DEATH):
            sys.exit("injected death")
        while holds(ids, STANDSTILL):
            time.sleep(1)
        return super().forward(batch)


def holds(ids, mark):
    return any(ids[i : i + len(mark)] == mark for i in range(len(ids)))


def faulty_load(*arguments):
    engine = load(*arguments)
    engine.runner = FaultyRunner(engine.runner.model, engine.runner.pool, engine.runner.device)
    return engine


@contextmanager
def faulty_server(model, log, *flags, program="tests.faulty_server"):
    """(url, process) of a server on a free port; what it logs goes to the file `log`. `server.cli` has no faults."""
    command = [sys.executable, "-m", program, "serve", str(model), "--port", "0", *flags]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
    root = Path(__file__).parents[1]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=root, env=environ) as process,
    ):
        try:
            urls = (re.search(r"curl -N (http://[^/]+)", line) for line in process.stdout)
            found = next(filter(None, urls), None)
            assert found, log.read_text()
            yield found[1], process
        finally:
            process.kill()


if __name__ == "__main__":
    server.commands.serve.load = faulty_load
    sys.exit(main(sys.argv[1:]))
