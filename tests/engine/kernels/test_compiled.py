"""What torch's compiler is given, and that an engine says the same through it; without a C++ compiler, a clear word."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from engine import ConfigError, EngineConfig, load
from engine.bench.reference import DenseContext
from engine.kernels.compiled import find_code_folder
from engine.models import new_model
from engine.models.experts import MoEConfig
from engine.models.synthetic import random_model

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["", "/torchinductor"])
def test_a_folder_for_code_that_cannot_be_written_costs_a_warning(llada_tiny, tmp_path, inside):
    """In a new process: this one has torch's compiler already."""
    (tmp_path / "file").touch()
    folder = f"{tmp_path}/file{inside}"
    program = f"from engine import EngineConfig, load; print(load(EngineConfig(model={str(llada_tiny)!r})).info.device)"
    environ = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
    ended = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert f"TORCHINDUCTOR_CACHE_DIR={folder} cannot be written" in ended.stderr


@pytest.mark.parametrize("is_there", [True, False])
def test_one_that_can_be_is_left_alone(monkeypatch, tmp_path, caplog, is_there):
    folder = str(tmp_path if is_there else tmp_path / "new" / "one")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)
    find_code_folder()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == folder
    assert not caplog.records


def test_without_any_place_to_write_there_is_one_that_exists(monkeypatch, caplog):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/dev/null/x")
    monkeypatch.setattr(tempfile, "gettempdir", mock.Mock(side_effect=FileNotFoundError))
    find_code_folder()
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_dir()
    assert "Not a directory" in caplog.text


def forward(model, rows, targets):
    context = DenseContext(model, rows)
    with torch.inference_mode():
        hidden = model(torch.arange(rows), torch.arange(rows), context)
        return model.logits(hidden[:targets])


@pytest.fixture(params=[(5, True), pytest.param((2, False), marks=pytest.mark.slow)])
def models(request):
    """With so many layers, and norms of queries and keys or none: a plain one, and one with compiled parts."""
    plain, _ = random_model("tiny", 128, torch.float32, CPU)
    num_layers, qk_norm = request.param
    geometry = replace(plain.config, num_layers=num_layers, qk_norm=qk_norm)
    pair = [new_model(geometry, torch.float32, CPU) for _ in range(2)]
    for parameter, same in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
        same.copy_(parameter.normal_(1.0, 0.1) if parameter.dim() == 1 else parameter.normal_(0.0, 0.1))
    pair[1].compile_parts()
    return pair


def test_three_graphs_whatever_the_layers_and_rows(graphs, models):
    plain, model = models
    for rows, targets in ((32, 8), (100, 3), (2, 2), (33, 31), (96, 96)):
        torch.testing.assert_close(forward(model, rows, targets), forward(plain, rows, targets))
        assert len(graphs) == 3
    for rows, targets in ((1, 1), (64, 1), (1, 1), (7, 5)):
        torch.testing.assert_close(forward(model, rows, targets), forward(plain, rows, targets))
    assert len(graphs) == 6, "a single row has graphs of its own"


@pytest.mark.slow
def test_experts_are_in_the_graphs_of_layers_that_have_them(graphs):
    """Two graphs behind attention: one for layers with experts, one for those without."""
    moe = MoEConfig(num_experts=8, experts_per_token=2, ff_dim=48, is_normalised=True, dense_layers=frozenset({0}))
    geometry = replace(random_model("tiny", 128, torch.float32, CPU)[0].config, num_layers=4, moe=moe)
    plain, model = (new_model(geometry, torch.float32, CPU) for _ in range(2))
    torch.manual_seed(0)
    for parameter, same in zip(plain.parameters(), model.parameters(), strict=True):
        same.copy_(parameter.normal_(1.0, 0.1) if parameter.dim() == 1 else parameter.normal_(0.0, 0.1))
    model.compile_parts()
    for rows, targets in ((32, 8), (100, 3), (33, 31)):
        torch.testing.assert_close(forward(model, rows, targets), forward(plain, rows, targets))
        assert len(graphs) == 4
    calls = [str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("unmask.expert_mlps" in name for name in calls) == 1


def test_the_cpus_own_product_is_in_the_graphs(graphs, models):
    """Not MKL's, into which the compiler would turn one that it knows."""
    forward(models[1], 32, 8)
    calls = [str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("unmask.linear" in name for name in calls) == 5
    assert not any("mkldnn" in name or "linear" in name.replace("unmask.linear", "") for name in calls)


def staggered(engine, submission, rows, seed=20261122):
    """Tokens of golden rows that join and leave a running batch."""
    rng = random.Random(seed)
    pending = rng.sample(list(enumerate(rows)), len(rows))
    tokens = {number: [] for number in range(len(rows))}
    while pending or engine.request_ids:
        for _ in range(min(rng.randint(0, 3), len(pending))):
            number, row = pending.pop()
            engine.submit(engine.new_request(submission(number, **row)))
        for output in engine.step():
            tokens[int(output.request_id)].extend(output.token_ids)
    return list(tokens.values())


@pytest.mark.slow
def test_golden_rows_through_the_graphs(graphs, llada_tiny, golden, submission):
    engine = load(EngineConfig(model=str(llada_tiny), device="cpu", compile=True))
    num_loaded = len(graphs)
    rows = golden[::18]
    assert staggered(engine, submission, rows) == [row["output"] for row in rows]
    assert len(graphs) == num_loaded, "a request had something compiled"


@pytest.fixture
def compiler():
    """Torch's own, which takes seconds to import: not where this module is only collected."""
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's compiler calls it itself
def test_golden_rows_compiled(compiler, llada_tiny, golden, submission):
    """Every third, in one running batch of changing row counts, on a thread that is not the one which compiled."""
    from torch._dynamo.utils import counters

    engine = load(EngineConfig(model=str(llada_tiny), device="cpu", compile=True))
    num_loaded = counters["stats"]["unique_graphs"]
    with ThreadPoolExecutor(1) as thread:
        tokens = thread.submit(staggered, engine, submission, golden[::3]).result()
    assert tokens == [row["output"] for row in golden[::3]]
    assert counters["stats"]["unique_graphs"] == num_loaded, "a request had something compiled"
    assert engine.stats().kv_pages_used == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_family_with_biases_grouped_heads_and_shifted_logits_compiled(compiler, dream_tiny, golden, submission):
    rows = [{**row, "cache": cache} for row in golden[::30] for cache in ("dual", "delayed", "d2")]
    plain, engine = (load(EngineConfig(model=str(dream_tiny), device="cpu", compile=on)) for on in (False, True))
    assert staggered(engine, submission, rows) == staggered(plain, submission, rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_without_a_compiler_a_clear_word_before_weights_are_read(compiler, llada_tiny, tmp_path):
    from torch._inductor import config as inductor

    shutil.copy(llada_tiny / "config.json", tmp_path)
    message = r"^compile: true needs .*No working C\+\+.*apt-get install g\+\+"
    with inductor.patch({"cpp.cxx": ("/nowhere/g++",)}), pytest.raises(ConfigError, match=message) as caught:
        load(EngineConfig(model=str(tmp_path), device="cpu", compile=True))
    assert "\n" not in str(caught.value), "one line"
