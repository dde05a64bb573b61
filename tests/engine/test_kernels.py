"""Every attention kernel decodes golden rows token for token, alone and in one batch with others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import EngineConfig, load
from engine.execution.batch import _table, tiles_of
from engine.kernels import native, proposals
from engine.kernels.attention import TILE_ROWS, Heads, PagedRows, agrees, attend_rows, attend_spans
from engine.kernels.triton_available import has_triton

KERNELS = ["ours", "torch's", "row by row", *(["Triton's"] if has_triton() else [])]


def attend_pages(q, keys, values, layout):
    """Triton's kernel over the page tables of a batch that is on a CPU."""
    from engine.kernels import triton_attention

    arrays = tiles_of(layout.spans, TILE_ROWS), layout.horizons, _table(layout.spans, 32)
    tables = [torch.from_numpy(array.astype(np.int32)) for array in arrays]
    return triton_attention.attend_pages(q, keys, values, replace(layout, paged=PagedRows(*tables, 32)))


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    if request.param == "ours":
        assert native.kernel()
        assert proposals.kernel()
        return attend_spans
    monkeypatch.setattr(native, "kernel", lambda: None)
    monkeypatch.setattr(proposals, "kernel", lambda: None)
    return {"torch's": attend_spans, "row by row": attend_rows, "Triton's": attend_pages}[request.param]


@pytest.fixture
def by_kernel(kernel, llada_tiny):
    engine = load(EngineConfig(model=str(llada_tiny), device="cpu"))
    engine.runner.kernel = kernel
    return engine


def decoded(engine, run, submission, rows):
    ends = run(engine, *(submission(number, **row) for number, row in enumerate(rows)))
    return [ends[str(number)][0] for number in range(len(rows))]


def test_golden_rows_alone_and_in_one_batch(by_kernel, golden, submission, run):
    """Those with the fewest forwards: Triton's interpreter takes a tenth of a second for each."""
    rows = sorted(golden, key=lambda row: row["nfe"])[:2]
    assert decoded(by_kernel, run, submission, rows) == [row["output"] for row in rows]
    assert decoded(by_kernel, run, submission, rows[:1]) == [rows[0]["output"]]


@pytest.mark.skipif(not has_triton(), reason="torch's builds for CPUs bring no Triton")
@pytest.mark.parametrize(
    ("heads", "page_size", "stored"),
    [
        (Heads(2, 2, 64), 32, torch.float32),
        (Heads(2, 2, 64), 32, torch.int8),
        (Heads(1, 7, 128), 1, torch.float8_e4m3fn),
        (Heads(4, 1, 80), 100, torch.float32),
    ],
)
def test_a_kernel_is_held_to_the_definition_before_it_is_used(heads, page_size, stored):
    """As at every start on CUDA."""
    from engine.kernels.triton_attention import attend_pages as own

    cpu = torch.device("cpu")
    assert agrees(own, heads, page_size, torch.float32, stored, cpu)
    assert not agrees(lambda *arguments: own(*arguments) + 0.01, heads, page_size, torch.float32, stored, cpu)
