"""The decode benchmark on the tiny shape: rows and forwards exactly, time not at all; the baseline is no strawman."""

import time
from itertools import chain
from statistics import median

import numpy as np
import pytest
import torch

from engine import METHODS, ConfigError, EngineConfig, LoadError, Workload, bench_decode
from engine.bench import timed_run
from engine.bench.reference import DenseContext
from engine.bench.timed_run import Turn
from engine.kernels.attention import Layout, PagedContext, Span, attend_spans
from engine.kernels.kv.pool import KVPool
from engine.models.synthetic import random_model
from tests.engine.toys import FULL_ATTENTION_CACHES

CPU = torch.device("cpu")
TINY = EngineConfig(model="tiny")
SHAPE = {"prompt": 24, "gen": 64, "block": 16, "repeats": 1}
BLOCKS, LENGTH = 4, 88


def figures(methods=METHODS, config=TINY, **changes):
    return {row.method: row for row in bench_decode(config, Workload(**{**SHAPE, **changes}), methods)}


@pytest.fixture(scope="module")
def whole():
    """Figures of one request, all of whose steps are taken."""
    return figures(sample_steps=1000)


def test_rows_and_forwards_of_every_method(whole):
    """Four tokens a step make four steps a block, the first of which is the refresh."""
    rows = whole
    in_block = BLOCKS * 3 * 16
    prefix = BLOCKS * LENGTH + 3 * sum((64, 48, 32, 16))
    window = LENGTH + 3 * (32 + 16)  # 32 before the blocks at 40, 56 and 72, and the blocks
    expected = {
        "reference/baseline": (64, 64 * LENGTH),
        "reference/prefix": (16, prefix),
        "reference/dual": (16, BLOCKS * LENGTH + in_block),
        "engine/none": (16, 16 * LENGTH),
        "engine/prefix": (16, prefix),
        "engine/dual": (16, BLOCKS * LENGTH + in_block),
        "engine/window": (16, window + in_block),
    }
    counted = {method: (row.forwards, row.rows) for method, row in rows.items() if method in expected}
    assert counted == expected
    assert not any(row.sampled for row in rows.values())


def test_a_sample_stands_for_the_whole(whole):
    sample = figures(sample_steps=2, sample_blocks=1)
    names = {method for method, row in sample.items() if row.sampled}
    assert names == {"reference/baseline", "engine/none", "reference/dual", "engine/dual"}
    for method, row in sample.items():
        assert (row.forwards, row.rows) == (whole[method].forwards, whole[method].rows)


def test_a_batch(whole):
    """The engine's requests share forwards; the reference loops are one after the other, so one is timed."""
    three = figures(batch=3, sample_steps=1000)
    for method, row in three.items():
        if method != "engine/d2":  # whose rows depend on what the model says
            assert row.rows == 3 * whole[method].rows
        assert row.forwards == whole[method].forwards * (3 if method.startswith("reference") else 1)
        assert row.sampled == method.startswith("reference")
        assert row.tokens_per_second == pytest.approx(3 * 64 / row.seconds)


def test_ratios_are_medians_of_the_rounds(monkeypatch):
    """Not ratios of the medians: a machine whose speed drifts is as fast within a round, but not over all of them."""
    seconds = chain((10.0, 3.0, 2.0), (8.0, 2.0, 1.0), (4.0, 2.0, 4.0))
    monkeypatch.setattr("engine.bench.benchmark.take_turn", lambda *_: Turn(1, 1, next(seconds), sampled=False))
    rows = figures(("reference/baseline", "reference/dual", "engine/dual"), repeats=3)
    told = {name: (row.seconds, row.ratio_to_baseline, row.ratio_to_reference_dual) for name, row in rows.items()}
    assert told == {
        "reference/baseline": (8.0, 1.0, 3 / 10),
        "reference/dual": (2.0, 10 / 3, 1.0),
        "engine/dual": (2.0, 5.0, 3 / 2),
    }


def test_host_share_and_memory():
    rows = figures(("engine/dual", "reference/dual", "reference/baseline"))
    for method, row in rows.items():
        assert (row.host_share is None) == method.startswith("reference")
        assert (row.host_us_per_step is None) == method.startswith("reference")
        assert row.peak_memory_bytes is None or row.peak_memory_bytes > 2**20
    dual = rows["engine/dual"]
    assert 0 < dual.host_share < 1
    assert 0 < dual.host_us_per_step * 1e-6 * dual.forwards < dual.host_share * dual.seconds, "scoring is the rest"
    alone = figures(("engine/dual",))["engine/dual"]
    assert (alone.ratio_to_baseline, alone.ratio_to_reference_dual) == (None, None)


def test_each_format_has_a_pool_of_its_own(monkeypatch):
    pools, made = [], timed_run.KVPool
    monkeypatch.setattr(timed_run, "KVPool", lambda *sizes: pools.append(made(*sizes)) or pools[-1])
    rows = figures(("engine/dual", "engine/dual:int8", "engine/dual+8:fp8", "engine/d2:int8", "engine/dual:auto"))
    dtypes = [torch.float32, torch.int8, torch.float8_e4m3fn, torch.int8, torch.float32]
    assert [pool.keys.dtype for pool in pools] == dtypes
    assert rows["engine/dual"].rows == rows["engine/dual:int8"].rows == rows["engine/dual:auto"].rows
    assert rows["engine/dual"].ratio_to_first == 1
    for row in rows.values():  # of a single round
        assert row.ratio_to_first == pytest.approx(rows["engine/dual"].seconds / row.seconds)


def test_every_cache_policy_is_a_method_and_takes_turns():
    assert {f"engine/{cache}" for cache in FULL_ATTENTION_CACHES} <= set(METHODS)
    seen = []
    bench_decode(
        TINY, Workload(**{**SHAPE, "repeats": 2}), ["engine/dual", "engine/window"], lambda *at: seen.append(at)
    )
    assert seen == [(0, 4, "engine/dual"), (1, 4, "engine/window"), (2, 4, "engine/dual"), (3, 4, "engine/window")]


def test_a_checkpoint_in_place_of_random_weights(llada_tiny, dream_tiny):
    for folder in (llada_tiny, dream_tiny):
        rows = figures(("reference/dual", "engine/dual"), EngineConfig(model=str(folder)))
        assert rows["engine/dual"].forwards == 16


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"gen": 60}, ConfigError, "multiple of block"),
        ({"tokens_per_step": 5}, ConfigError, "tokens_per_step 5"),
        ({"repeats": 0}, ConfigError, "repeats is 0"),
        ({"methods": ["engine/lru"]}, ConfigError, "engine/lru"),
        ({"methods": ["engine/dual:int4"]}, ConfigError, "engine/dual:int8"),
        ({"methods": ["reference/dual:int8"]}, ConfigError, "reference/dual:int8"),
        ({"config": EngineConfig(model="/nowhere")}, LoadError, "nowhere"),
    ],
)
def test_what_cannot_be_measured(changes, error, message):
    with pytest.raises(error, match=message):
        figures(**changes)


def test_a_model_whose_context_is_too_short(llada_tiny):
    with pytest.raises(ConfigError, match="limit is 1024"):
        figures(config=EngineConfig(model=str(llada_tiny)), prompt=1024)


def test_random_weights_keep_numbers_finite():
    model, spec = random_model("tiny", 64, torch.float32, CPU)
    with torch.inference_mode():
        hidden = model(torch.arange(64), torch.arange(64), DenseContext(model, 64))
        assert hidden.abs().max() < 100
        assert model.logits(hidden).std() < 10
    assert (spec.vocab_size, spec.mask_id, spec.max_model_len) == (256, 255, 64)


def test_the_small_size_is_the_published_shape():
    model, spec = random_model("small", 32, torch.float32, CPU)
    assert model.config.num_parameters == pytest.approx(31e6, rel=0.03)
    assert spec.vocab_size == 4096


@pytest.mark.slow
def test_the_baseline_is_no_strawman():
    """Over the same rows, the reference's dense forward takes no longer than the engine's; both with the whole head."""
    rows = 384
    model, _ = random_model("small", rows, torch.float32, CPU)
    geometry = model.config
    pool = KVPool(geometry.num_layers, rows, geometry.num_kv_heads, geometry.head_dim, torch.float32, CPU)
    ids = positions = torch.arange(rows)
    dense = DenseContext(model, rows)
    layout = Layout(np.full(rows, rows), [Span(0, rows, np.arange(rows))], CPU)
    paged = PagedContext(pool, positions, layout, attend_spans)

    def seconds(context):
        started = time.process_time()
        with torch.inference_mode():
            model.logits(model(ids, positions, context))
        return time.process_time() - started

    ratios = [seconds(dense) / seconds(paged) for _ in range(6)][1:]  # the first one pays for what is set up once
    assert median(ratios) < 1.2
