"""Devices by their names, and what a thread does to one before it computes. No GPU is needed: `torch.cuda` is told."""

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from engine import ConfigError, EngineConfig, EngineLoop, plan_memory
from engine.execution.choices import choose_device, enter_device


@pytest.fixture
def cuda(monkeypatch):
    """`cuda(n)`: a machine with so many GPUs; returns what is asked of them."""

    def have(count):
        asked = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append((threading.get_ident(), str(device))))
        monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: asked.append(("cudnn", on)))
        return asked

    return have


def chosen(name):
    return str(choose_device(EngineConfig(model="m", device=name)))


def test_no_test_sees_a_gpu():
    """Nor what it starts: the same tests with and without one."""
    seen = "import os; print(repr(os.environ.get('CUDA_VISIBLE_DEVICES')))"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True).stdout == "''\n"
    assert not torch.cuda.is_available()


def test_a_device_is_here_and_has_its_number(cuda):
    cuda(0)
    assert [chosen(name) for name in ("auto", "cpu")] == ["cpu", "cpu"]
    cuda(2)
    assert [chosen(name) for name in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda:0", "cpu", "cuda:0", "cuda:1"]


@pytest.mark.parametrize("name", ["mps", "meta", "xpu", "cpu:3", "cuda:", "cuda:-1", "cuda:1000", "", " cuda", "CUDA"])
def test_other_devices_are_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"device is '{name}'; it must be auto, cpu, cuda"):
        EngineConfig(model="m", device=name)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:7", 1), ("cuda:2", 2), ("cuda:300", 44)])
def test_devices_that_are_not_here_are_refused(cuda, name, count):
    cuda(count)
    with pytest.raises(
        ConfigError, match=rf"device '{name}' was asked for, but (torch sees no|there are only {count}) "
    ):
        chosen(name)


def test_a_plan_is_for_any_machine(cuda, llada_tiny):
    cuda(0)
    assert plan_memory(EngineConfig(model=str(llada_tiny), device="cuda:7"), 2**30).max_model_len


def test_a_thread_enters_the_device_without_attention_of_cudnns(cuda):
    asked = cuda(2)
    enter_device(torch.device("cuda", 1))
    assert asked == [(threading.get_ident(), "cuda:1"), ("cudnn", False)]
    enter_device(torch.device("cpu"))
    assert len(asked) == 2


async def test_the_engines_thread_enters_it_before_its_first_step(cuda, engine, monkeypatch):
    asked = cuda(2)
    monkeypatch.setattr(engine, "runner", SimpleNamespace(device=torch.device("cuda", 1)))
    loop = EngineLoop(engine)
    loop.start()
    await loop.stop(0)
    assert asked[0] == (loop._thread.ident, "cuda:1")
