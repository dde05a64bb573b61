"""Models with experts on a GPU whose torch has no grouped product: the start says that they are slow, and why."""

from dataclasses import replace

import pytest
import torch

from engine import EngineConfig, load
from engine.execution import build
from engine.execution.choices import warn_of_slow_experts
from tests.engine.toys import TOY, TOY_MOE

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
EXPERTS = replace(TOY, moe=TOY_MOE)


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(major)`: torch tells of a GPU of this compute capability."""

    def tell(major):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")

    return tell


@pytest.mark.parametrize(
    ("major", "geometry", "dtype", "named"),
    [
        (8, EXPERTS, torch.bfloat16, "Some GPU in bfloat16"),
        (9, EXPERTS, torch.float16, "Some GPU in float16"),
        (9, replace(EXPERTS, moe=replace(TOY_MOE, ff_dim=44)), torch.bfloat16, "multiples of 8"),
    ],
)
def test_the_warning_names_what_is_missing(gpu, caplog, major, geometry, dtype, named):
    gpu(major)
    warn_of_slow_experts(geometry, dtype, CUDA)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert f"all {TOY_MOE.num_experts} experts, not through {TOY_MOE.experts_per_token} alone" in record.message
    assert named in record.message


@pytest.mark.parametrize(
    ("major", "geometry", "dtype", "device"),
    [
        (9, EXPERTS, torch.bfloat16, CUDA),
        (8, EXPERTS, torch.float32, CPU),
        (8, TOY, torch.bfloat16, CUDA),
        (8, replace(TOY, moe=replace(TOY_MOE, dense_layers=frozenset(range(TOY.num_layers)))), torch.float32, CUDA),
    ],
)
def test_where_nothing_is_slow_nothing_is_said(gpu, caplog, major, geometry, dtype, device):
    gpu(major)
    warn_of_slow_experts(geometry, dtype, device)
    assert not caplog.records


def test_each_engine_asks_once(sdar_moe_tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(build, "warn_of_slow_experts", lambda *given: asked.append(given))
    engine = load(EngineConfig(model=str(sdar_moe_tiny), max_model_len=64, device="cpu"))
    assert asked == [(engine.runner.model.config, torch.float32, CPU)]
