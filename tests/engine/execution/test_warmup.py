"""The steps before the first request: a model that cannot compute is refused, everything is compiled after them."""

import logging
from dataclasses import replace

import pytest
import torch

from engine import CapacityError, DiffusionParams, EngineConfig, LoadError, SamplingParams, Submission, load
from engine.execution.graphs import shapes_of
from engine.execution.runner import Runner
from engine.execution.step import prepare
from engine.execution.warmup import _largest, warm_up

CPU = torch.device("cpu")
LIMITS = [{}, {"max_model_len": 20, "max_batch_rows": 1300}, {"max_model_len": 1, "max_batch_rows": 65}]


@pytest.fixture
def forwards(monkeypatch):
    """Rows of each request of every forward from now on."""
    seen = []
    forward = Runner.forward

    def spy(runner, batch):
        seen.append(sorted((span.stop - span.start for span in batch.layout.spans), reverse=True))
        return forward(runner, batch)

    monkeypatch.setattr(Runner, "forward", spy)
    return seen


@pytest.fixture
def on_cuda(monkeypatch, llada_tiny):
    """`on_cuda(**limits)`: warms up an engine's runner that takes its device for CUDA."""
    monkeypatch.setattr(
        "engine.execution.warmup.prepare", lambda plans, needs, **own: prepare(plans, needs, **{**own, "device": CPU})
    )

    def start(max_batch_rows, max_model_len, kv_cache_tokens=4096, shapes=()):
        config = EngineConfig(model=str(llada_tiny), device="cpu", kv_cache_tokens=kv_cache_tokens)
        engine = load(config)
        runner = Runner(engine.runner.model, engine.runner.pool, torch.device("cuda"))
        spec = replace(engine.info.spec, max_model_len=max_model_len)
        warm_up(runner, spec, max_batch_rows=max_batch_rows, page_size=32, is_compiled=False, shapes=shapes)
        return runner

    return start


@pytest.mark.parametrize("limits", LIMITS)
def test_every_start_takes_a_step(forwards, llada_tiny, limits):
    engine = load(EngineConfig(model=str(llada_tiny), device="cpu", **limits))
    assert forwards == [[min(32, engine.info.max_model_len)]]
    assert not engine.request_ids
    assert engine.stats().forwards == engine.stats().kv_pages_used == engine.stats().decoding.batch_rows.count == 0


@pytest.mark.slow
def test_block_causal_models_are_tried_with_as_many_requests(graphs, forwards, sdar_tiny, caplog):
    """Also in a small pool: these canvases are one open block, and take no page later. The log tells of it."""
    caplog.set_level(logging.INFO)
    load(EngineConfig(model=str(sdar_tiny), device="cpu", compile=True, max_model_len=256, kv_cache_tokens=256))
    assert forwards == [[32] * 8, [32] * 2, [1]]
    lines = [record.message for record in caplog.records if record.name == "engine.execution.warmup"]
    assert [line.split(maxsplit=1)[0] for line in lines] == ["compiling;", "compiled"], "no progress is shown"


@pytest.mark.slow
@pytest.mark.parametrize("limits", LIMITS)
def test_all_is_compiled_before_the_first_request(graphs, forwards, llada_tiny, caplog, limits):
    caplog.set_level(logging.INFO)
    told = []
    engine = load(
        EngineConfig(model=str(llada_tiny), device="cpu", compile=True, kv_cache_tokens=1024, **limits),
        lambda *at: told.append(at),
    )
    canvas = min(32, engine.info.max_model_len)
    assert forwards == [[canvas] * 8, [canvas] * 2, [1]]
    assert engine.stats() == load(EngineConfig(model=str(llada_tiny), kv_cache_tokens=1024, **limits)).stats()
    steps = [at for at in told if at[0] == "compiling"]
    assert steps == [("compiling", done, 3) for done in range(3)]
    assert told.index(steps[0]) == len(told) - 3, "weights come first"
    assert not [record for record in caplog.records if record.name == "engine.execution.warmup"]


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{}, {"max_model_len": 4}])
def test_drafts_are_compiled_before_the_first_request(graphs, forwards, nemotron_spec_tiny, run, limits):
    """Also those with a single target, which is the only row behind the last layer's attention."""
    engine = load(
        EngineConfig(model=str(nemotron_spec_tiny), device="cpu", compile=True, kv_cache_tokens=1024, **limits)
    )
    canvas = min(32, engine.info.max_model_len)
    assert forwards == [[canvas] * 8, [canvas] * 2, [1], [canvas - 1], [2]]
    compiled, adapted = len(graphs), []
    hidden = engine.runner.hidden
    engine.runner.hidden = lambda batch: adapted.append(batch.adapted) or hidden(batch)
    for number, block_length in enumerate((8, 2, 3)):
        diffusion = DiffusionParams(unmask="linear_spec", block_length=block_length)
        sampling = SamplingParams(max_tokens=min(20, canvas - 1), ignore_eos=True)
        run(engine, Submission(request_id=str(number), prompt_ids=[5], sampling=sampling, diffusion=diffusion))
    assert {len(rows) for rows in adapted if rows is not None} >= ({2} if limits else {2, 3, 8})
    assert len(graphs) == compiled


def test_on_cuda_the_largest_step_is_taken(forwards, on_cuda):
    on_cuda(max_batch_rows=700, max_model_len=300)
    assert forwards[-2:] == [[300, 300, 60]] * 2, "300 take 10 pages; once with all options, once with none"
    del forwards[:]
    on_cuda(max_batch_rows=700, max_model_len=300, kv_cache_tokens=1024)
    assert forwards[-1] == [300, 300, 60]
    on_cuda(max_batch_rows=7000, max_model_len=1000, kv_cache_tokens=1024)
    assert forwards[-1] == [1000], "as far as there are pages"


def test_graphs_are_captured_once_kernels_are_compiled_and_before_the_largest_step(forwards, on_cuda, monkeypatch):
    """Which so is tried with the memory that they leave."""
    monkeypatch.setattr(Runner, "capture", lambda _, shapes: forwards.append(shapes))
    on_cuda(max_batch_rows=700, max_model_len=300, shapes=("some", "shapes"))
    assert forwards[-6:] == [[32], [32, 32], ("some", "shapes"), *[[300, 300, 60]] * 3]


@pytest.mark.parametrize("limits", [{}, {"max_model_len": 1000, "kv_cache_tokens": 1024}])
def test_on_cuda_rows_are_written_to_neighbouring_slots_and_to_others(on_cuda, monkeypatch, limits):
    """Kernels that take a slice of the pool or a list of slots are compiled for both."""
    slots = set()
    hidden = Runner.hidden
    monkeypatch.setattr(Runner, "hidden", lambda runner, batch: slots.add(type(batch.slots)) or hidden(runner, batch))
    on_cuda(**{"max_batch_rows": 100, "max_model_len": 100, **limits})
    assert slots == {slice, torch.Tensor}


def test_a_start_without_graphs_that_work_is_a_start(on_cuda, monkeypatch, caplog):
    def refused():
        raise RuntimeError("CUDA driver is too old")

    monkeypatch.setattr("engine.execution.graphs._on_cuda", refused)
    shapes = shapes_of(EngineConfig(model="m"), 300, 700, 4096)
    assert on_cuda(max_batch_rows=700, max_model_len=300, shapes=shapes).graphs is None
    assert "CUDA graphs do not work here (RuntimeError: CUDA driver is too old)" in caplog.text


@pytest.mark.parametrize(("max_model_len", "room", "page_size"), [(1, 1, 1), (300, 64, 32), (33, 999, 32), (7, 70, 16)])
def test_the_largest_step_fits_the_pool_and_the_budget(max_model_len, room, page_size):
    canvases = _largest(max_model_len, room, page_size)
    assert 0 < sum(canvases) <= room
    assert max(canvases) <= max_model_len
    assert sum(-(-canvas // page_size) for canvas in canvases) <= -(-room // page_size)


@pytest.mark.parametrize("plain", [True, False])
def test_what_scores_apart_is_tried_apart(on_cuda, monkeypatch, plain):
    """Each of the two ways of scoring fails at the start, and not in front of the first user."""
    broken = "Transformer.propose" if plain else "Transformer.logits"
    monkeypatch.setattr(f"engine.models.layers.{broken}", lambda *_: 1 / 0)
    with pytest.raises(LoadError, match=r"a first step of .* rows fails: ZeroDivisionError"):
        on_cuda(max_batch_rows=700, max_model_len=300)


def test_memory_that_does_not_do_for_it_is_told_at_the_start(on_cuda, monkeypatch):
    forward = Runner.forward

    def short(runner, batch):
        if len(batch.ids) > 500:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return forward(runner, batch)

    monkeypatch.setattr(Runner, "forward", short)
    with pytest.raises(CapacityError, match="memory runs out in a step of 660 rows: lower max_batch_rows"):
        on_cuda(max_batch_rows=700, max_model_len=300)


def test_weights_that_do_not_fit_are_told_so(llada_tiny, monkeypatch):
    def short(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("engine.models._on_device", short)
    with pytest.raises(CapacityError, match=r"memory runs out while .* is loaded on cpu"):
        load(EngineConfig(model=str(llada_tiny), device="cpu"))


def test_a_defect_of_ours_while_weights_load_is_no_lack_of_memory(llada_tiny, monkeypatch):
    monkeypatch.setattr("engine.assemble.load_model", None)
    with pytest.raises(TypeError):
        load(EngineConfig(model=str(llada_tiny), device="cpu"))


def test_a_first_step_that_raises_is_a_model_that_cannot_be_served(on_cuda, monkeypatch):
    monkeypatch.setattr(Runner, "forward", None)
    with pytest.raises(LoadError, match="a first step of 32 rows fails: TypeError"):
        on_cuda(max_batch_rows=700, max_model_len=300)
