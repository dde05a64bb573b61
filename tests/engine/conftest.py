"""Fixtures that several of the engine's test modules share."""

from types import SimpleNamespace

import pytest
import torch

from engine import EngineConfig, load

from .faulty import outputs

CROWD = [
    {"cache": "dual", "unmask": "threshold", "threshold": 0.3, "block_length": 8},
    {"cache": "none", "unmask": "fixed", "block_length": 16, "temperature": 0.8},
    {"cache": "d2", "unmask": "threshold", "threshold": 0.3, "current_k": 8, "block_length": 16},
    {"cache": "prefix", "unmask": "factor", "block_length": 8, "temperature": 1.2},
    {"cache": "window", "unmask": "cad", "initial_block_length": 12},
    {"cache": "none", "unmask": "dream", "steps": 20},
    {"cache": "dual", "unmask": "entropy_bound", "block_length": 8, "holes": [(2, 20), (9, 28)], "stop_ids": {5}},
]


@pytest.fixture(scope="session")
def everybody(submission):
    """A request of each kind."""
    return tuple(
        submission(f"good-{n}", prompt=list(range(20 + n, 34 + n)), gen_length=48, **row) for n, row in enumerate(CROWD)
    )


@pytest.fixture
def crowd(everybody):
    return list(everybody)


@pytest.fixture(scope="session")
def undisturbed(llada_tiny, everybody):
    """What each of the crowd gets where nothing fails: outputs by id."""
    return outputs(load(EngineConfig(model=str(llada_tiny))), *everybody)


@pytest.fixture
def device(monkeypatch):
    """`device.lost = True`: a GPU whose context is gone, and every later call says so."""
    device = SimpleNamespace(lost=False)

    def synchronize():
        if device.lost:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return device
