"""Training steps by CUDA graphs, on a stand-in for CUDA that records a step and runs it again."""

from contextlib import contextmanager

import pytest
import torch

from engine.demo.training import steps
from engine.demo.training.noise import Batch
from engine.demo.training.steps import GraphedSteps


class Graph:
    """What is recorded while it is captured runs at each replay, on what its buffers hold then."""

    recording = None

    def __init__(self):
        self.recorded = []

    def pool(self):
        return "pool"

    def replay(self):
        for learn in self.recorded:
            learn()


@pytest.fixture
def pools(monkeypatch):
    """The pools that graphs were captured with."""
    pools = []

    @contextmanager
    def capture(graph, pool, _stream, *, capture_error_mode):
        assert capture_error_mode == "thread_local"
        pools.append(pool)
        Graph.recording = graph.recorded
        yield
        Graph.recording = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(steps, "moved", lambda batch: Batch(*(x if x is None else x.clone() for x in batch)))
    return pools


def test_every_batch_is_learnt_once_and_in_order(pools):
    learnt = []

    def learn(batch):
        def now():
            kept = None if batch.opening is None else int(batch.opening[0, 0])
            learnt.append((tuple(batch.ids.shape), int(batch.ids[0, 0]), kept))

        now() if Graph.recording is None else Graph.recording.append(now)

    step = GraphedSteps(learn)
    shapes = [(2, 4), (1, 8), (2, 4), (2, 4), (1, 8), (1, 8), (2, 4)]
    plain = [(shape, number, None) for number, shape in enumerate(shapes)]
    cached = [(shape, number + 20, number + 40) for shape, number, _ in plain if shape == (2, 4)]
    wanted = [*plain, *cached, *plain]
    for shape, number, kept in wanted:
        ids = torch.full(shape, number)
        opening = None if kept is None else torch.full(shape, kept)
        step(Batch(ids, ids, ids, ids, ids, opening=opening, opened=opening))
    assert learnt == wanted
    assert pools == [None, "pool", "pool"], "a graph for each shape and kind, in one pool"
