"""What loading keeps for a step is what a step takes: measured allocation by allocation."""

import gc
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from engine import CapacityError
from engine.assemble import assemble
from engine.core.config import EngineConfig, ModelSpec
from engine.execution.budget import kv_bytes_per_token, kv_pool_pages, step_bytes
from engine.execution.warmup import any_text
from engine.models import new_model
from tests.engine.toys import TOY, TOY_MOE

GIB = 2**30
KINDS = {
    "narrow MLP": replace(TOY, ff_dim=64),
    "norms of queries and keys": replace(TOY, ff_dim=64, qk_norm=True),
    "wide MLP, few heads of keys": replace(TOY, ff_dim=700, num_kv_heads=1, qkv_bias=True),
    "large vocabulary": replace(TOY, vocab_size=12_000),
    "experts": replace(TOY, moe=TOY_MOE),
    "experts, a shared MLP and a dense layer": replace(
        TOY, moe=replace(TOY_MOE, shared_ff_dim=300, dense_layers=frozenset({0}))
    ),
}
ROWS = 512


def peak(work):
    """Bytes that `work` held at once beyond what was there.

    What an earlier profile saw allocated, and is garbage, would count as given back by `work`.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.fixture
def filled(submission):
    """An engine of random weights with `ROWS` rows to compute in its next step, all of them targets."""

    def build(geometry, dtype, rows=ROWS, constrained=False):
        model = new_model(geometry, dtype, torch.device("cpu"))
        for parameter in model.parameters():
            parameter.data.normal_(0.0, 0.02)
        vocab = geometry.vocab_size
        spec = ModelSpec(
            family="toy",
            vocab_size=vocab,
            mask_id=vocab - 1,
            eos_ids=frozenset({vocab - 2}),
            max_model_len=geometry.max_positions,
        )
        config = EngineConfig(
            model="toy", device="cpu", max_batch_rows=rows, max_running_requests=4, kv_cache_tokens=2 * ROWS
        )
        engine = assemble(config, model, spec, None)
        for number in range(4):
            canvas = rows // 4 - 1
            row = {"prompt": [1], "gen_length": canvas, "block_length": canvas, "cache": "none", "unmask": "entropy"}
            one = submission(number, **row, temperature=0.8, top_p=0.9)
            sampling = replace(one.sampling, logprobs=20, repetition_penalty=1.2)
            if constrained:
                sampling = replace(sampling, constraint=any_text(spec), ignore_eos=False)
            engine.submit(engine.new_request(replace(one, sampling=sampling)))
        return engine

    return build


@pytest.mark.parametrize(
    ("dtype", "rows", "kind"),
    [
        (torch.float32, ROWS, "narrow MLP"),
        (torch.bfloat16, ROWS + 4, "norms of queries and keys"),
        (torch.float32, ROWS + 4, "wide MLP, few heads of keys"),
        (torch.bfloat16, ROWS, "large vocabulary"),
        (torch.float32, ROWS + 4, "experts, a shared MLP and a dense layer"),
        *(
            pytest.param(dtype, rows, kind, marks=pytest.mark.slow)
            for dtype, rows, kind in [
                (torch.bfloat16, ROWS, "wide MLP, few heads of keys"),
                (torch.float32, ROWS + 4, "experts"),
                (torch.bfloat16, ROWS, "experts, a shared MLP and a dense layer"),
                (torch.float32, ROWS, "large vocabulary"),
            ]
        ),
    ],
)
def test_a_step_takes_what_is_kept_for_it(filled, kind, dtype, rows):
    """With everything asked for that takes memory, under a constraint. Not more; and not so much less that it is a
    waste.

    Products on a CPU are of more rows than 516, and of no more than 512; logits come in slices of either.
    """
    engine = filled(KINDS[kind], dtype, rows, constrained=True)
    taken, kept = peak(engine.step), step_bytes(KINDS[kind], dtype, rows)
    assert engine.stats().decoding.batch_rows.total == rows
    assert 0.5 * kept < taken <= kept


def test_what_a_step_takes_does_not_grow_with_its_targets(filled):
    """512 targets of 12,000 tokens: 23 MiB of logits, and ten times that to draw from all of them at once."""
    kept = step_bytes(KINDS["large vocabulary"], torch.float32, ROWS)
    assert kept - step_bytes(TOY, torch.float32, ROWS) == 256 * (12_000 - 300) * 40
    assert peak(filled(KINDS["large vocabulary"], torch.float32).step) < 512 * 12_000 * 40 * 0.6


@pytest.fixture
def memory(monkeypatch):
    """`memory(device, nbytes)`: a machine of this kind with so much memory, all of it free."""

    def have(device, nbytes):
        if device == "cuda":
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (nbytes, nbytes))
        else:
            known = {"SC_PHYS_PAGES": nbytes // 4096, "SC_PAGE_SIZE": 4096}
            monkeypatch.setattr("engine.execution.budget.os", SimpleNamespace(sysconf=known.__getitem__))

    return have


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_pool_gets_what_weights_and_a_step_leave(memory, device):
    """On CUDA the weights are in memory by then, on a CPU they are reckoned."""
    geometry, dtype, config = KINDS["large vocabulary"], torch.float32, EngineConfig(model="m", memory_fraction=0.5)
    memory(device, 2 * GIB)
    weights = 0 if device == "cuda" else 4 * geometry.num_parameters
    left = GIB - weights - step_bytes(geometry, dtype, ROWS)
    page = 32 * kv_bytes_per_token(geometry, dtype, dtype)
    config = replace(config, max_running_requests=10**6)
    assert kv_pool_pages(config, geometry, dtype, torch.device(device), 256, ROWS) == left // page
    few = replace(config, max_running_requests=3)
    assert kv_pool_pages(few, geometry, dtype, torch.device(device), 256, ROWS) == 3 * 256 // 32
    asked = replace(config, kv_cache_tokens=640)
    assert kv_pool_pages(asked, geometry, dtype, torch.device(device), 256, ROWS) == 20


def test_a_memory_that_holds_weights_but_no_step_is_refused(memory):
    memory("cuda", GIB // 9)
    config = EngineConfig(model="m", memory_fraction=1.0)
    with pytest.raises(CapacityError, match=r"0.00 GiB are left .* 0.\d\d GiB for a step of 512 rows"):
        kv_pool_pages(config, KINDS["large vocabulary"], torch.float32, torch.device("cuda"), 256, ROWS)
