"""`unmask serve` with an engine whose model fails on purpose.

A prompt that holds one of the marks below makes the forwards that see it fail. `faulty_server` runs it for a test.
"""

import re
import sys
import time
from contextlib import contextmanager

import torch

import server.commands.serve
from engine.execution.runner import Runner
from server import cli
from tests.forked import Forked, wait_until_ready

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


def main(argv):
    server.commands.serve.load = faulty_load
    return cli.main(argv)


@contextmanager
def faulty_server(model, log, *flags, program=__name__):
    """(url, process) of a server on a free port; what it says goes to the file `log`. `server.cli` has no faults."""
    with Forked(program, "serve", str(model), "--port", "0", *flags, log=log) as process:
        ends = time.monotonic() + 60
        while not (found := re.search(r"curl -N (http://[^/]+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.01)
        wait_until_ready(process, f"{found[1]}/ready", log, 60)
        yield found[1], process
