"""`python -m tests.faulty_server ...`: `unmask serve` with an engine whose model fails on purpose.

A prompt that holds FAULT makes every forward that sees it fail; the first that sees OUT_OF_MEMORY runs out of memory,
once. Run from the project's root.
"""

import sys

import torch

import server.serve
from engine.runner import Runner
from server.cli import main

FAULT = [201, 7, 201, 9, 201]
OUT_OF_MEMORY = [203, 7, 203, 9, 203]
load = server.serve.load


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
        return super().forward(batch)


def holds(ids, mark):
    return any(ids[i : i + len(mark)] == mark for i in range(len(ids)))


def faulty_load(*arguments):
    engine = load(*arguments)
    engine.runner = FaultyRunner(engine.runner.model, engine.runner.pool, engine.runner.device)
    return engine


if __name__ == "__main__":
    server.serve.load = faulty_load
    sys.exit(main(sys.argv[1:]))
