"""The forwards before the first request: everything is compiled after them, and nothing else is left of them."""

import logging

import pytest
import torch

from engine import EngineConfig, load
from engine.attention import KVPool
from engine.warmup import _batch, warm_up


class Marked(KVPool):
    """A pool whose content nobody has written."""

    def __init__(self, *geometry):
        super().__init__(*geometry)
        for number, tensor in enumerate((self.keys, self.values)):
            tensor.copy_(torch.arange(tensor.numel()).view_as(tensor) + number)


@pytest.fixture
def marked(monkeypatch):
    monkeypatch.setattr("engine.engine.KVPool", Marked)


@pytest.mark.parametrize(
    "limits", [{}, {"max_model_len": 20, "max_running_requests": 1}, {"max_model_len": 1, "max_running_requests": 1}]
)
def test_nothing_is_left_of_it(graphs, marked, llada_tiny, caplog, limits):
    caplog.set_level(logging.INFO)
    told = []
    engine = load(
        EngineConfig(model=str(llada_tiny), device="cpu", compile=True, kv_cache_tokens=1024, **limits),
        lambda *at: told.append(at),
    )
    pool = engine.runner.pool
    for number, tensor in enumerate((pool.keys, pool.values)):
        assert torch.equal(tensor, torch.arange(tensor.numel()).view_as(tensor).float() + number)
    fresh = load(EngineConfig(model=str(llada_tiny), device="cpu", kv_cache_tokens=1024, **limits))
    assert engine.stats() == fresh.stats()
    assert not engine.request_ids
    forwards = [at for at in told if at[0] == "compiling"]
    assert forwards == [("compiling", done, len(forwards)) for done in range(len(forwards))]
    assert told.index(forwards[0]) == len(told) - len(forwards), "weights come first"
    assert not [record for record in caplog.records if record.name == "engine.warmup"]


def test_the_log_tells_where_no_progress_is_shown(graphs, llada_tiny, caplog):
    caplog.set_level(logging.INFO)
    load(EngineConfig(model=str(llada_tiny), device="cpu", compile=True))
    lines = [record.message for record in caplog.records if record.name == "engine.warmup"]
    assert [line.split(maxsplit=1)[0] for line in lines] == ["compiling;", "compiled"]


def test_the_pool_is_as_it_was_where_a_forward_fails(marked, llada_tiny, monkeypatch):
    runner = load(EngineConfig(model=str(llada_tiny), device="cpu", kv_cache_tokens=1024)).runner
    before = runner.pool.keys.clone(), runner.pool.values.clone()

    def fails(hidden):
        raise RuntimeError("no luck")

    monkeypatch.setattr(runner.model, "logits", fails)
    with pytest.raises(RuntimeError, match="no luck"):
        warm_up(runner, 256)
    assert torch.equal(runner.pool.keys, before[0])
    assert torch.equal(runner.pool.values, before[1])


def test_the_default_does_without(llada_tiny, monkeypatch):
    monkeypatch.setattr("engine.engine.warm_up", None)
    load(EngineConfig(model=str(llada_tiny)))


def test_a_batch_writes_each_slot_once_within_every_context():
    batch = _batch([3, 3], torch.device("cpu"))
    assert batch.slots.tolist() == batch.logit_rows.tolist() == list(range(6))
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2]
    assert [(segment.start, segment.stop, segment.visible) for segment in batch.segments] == [
        (0, 3, slice(0, 6)),
        (3, 6, slice(0, 6)),
    ]
