"""The roofline's arithmetic: by hand for one small geometry, row by row against what the engine counts."""

import json
from dataclasses import replace
from operator import attrgetter
from types import SimpleNamespace

import pytest

from engine import (
    GEOMETRIES,
    HARDWARE,
    METHODS,
    ConfigError,
    EngineConfig,
    Hardware,
    LoadError,
    Step,
    Workload,
    bench_decode,
    forward_cost,
    geometry_of,
    predict,
    steps,
    with_fp8,
    with_graphs,
    with_ranks,
)
from engine.bench import hardware
from engine.bench.roofline.operators import MOE_LAUNCHES
from engine.models.experts import MoEConfig
from engine.models.families import dream, llada2
from tests.engine.toys import FULL_ATTENTION_CACHES, TOY

TINY = replace(TOY, dim=4, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=2, ff_dim=6, vocab_size=10)
SLOW = Hardware(name="by hand", flops=100.0, weight_flops=100.0, bandwidth=50.0, itemsize=2, weight_itemsize=2)


def test_a_rank_has_its_part_and_sends_sums():
    """As below, on two devices: half of each product, of attention and of the head, and 1 + 2 * 3 sums of 6 rows of 4
    numbers, of which each device sends half twice."""
    hardware = replace(SLOW, link_bandwidth=24.0, launch_seconds=1.0)
    geometry, step = replace(TINY, num_kv_heads=2), Step("step", rows=3, scored=1, visible=5)
    whole = forward_cost(geometry, hardware, step, requests=2)
    part = forward_cost(geometry, with_ranks(hardware, 2), step, requests=2)
    assert part.flops == whole.flops / 2
    assert (whole.sent, part.sent) == (0.0, 7 * 6 * 4 * 2)
    assert whole.bytes / 2 < part.bytes < whole.bytes
    assert part.bound_seconds > whole.bound_seconds / 2 + 7 * 48 / 24
    with pytest.raises(ConfigError, match="of by hand no link to others is known"):
        with_ranks(SLOW, 2)
    with pytest.raises(ConfigError, match="is 3, which does not divide the model"):
        predict("engine/dual", geometry, with_ranks(hardware, 3), Workload(), 4096)


def test_one_forward_by_hand():
    """Two requests of 3 rows, one of them scored, that see 5 positions; every figure below is worked out on paper."""
    cost = forward_cost(TINY, SLOW, Step("step", rows=3, scored=1, visible=5), requests=2)
    rows = 6
    qkv = 2 * rows * 4 * 8  # 4 -> 2 heads of q, 1 of k, 1 of v, each of 2
    out, up, down = 2 * rows * 4 * 4, 2 * rows * 4 * 12, 2 * rows * 6 * 4
    attention = 4 * rows * 5 * 4
    head = 2 * 2 * 4 * 10
    assert cost.flops == 3 * (qkv + out + up + down + attention) + head == 5920

    qkv_bytes = 2 * (4 * 8 + rows * (4 + 8))
    out_bytes, up_bytes, down_bytes = 2 * (16 + rows * 8), 2 * (48 + rows * 16), 2 * (24 + rows * 10)
    attention_bytes = 2 * (2 * 2 * 5 * 2 + 2 * rows * 4)
    single_bytes = 2 * rows * (2 * 2 * 4 + 2 * 3 * 4 + 2 * (4 + 2) + 2 * 2 * 2 + 3 * 6)
    head_bytes = 2 * (40 + 2 * 14) + 2 * 2 * 10
    layer_bytes = qkv_bytes + out_bytes + up_bytes + down_bytes + attention_bytes + single_bytes
    assert cost.bytes == 3 * layer_bytes + head_bytes == 5888

    # 100 operations and 50 bytes a second: an operator is bound by operations from 2 of them a byte.
    by_operations = [(up, up_bytes), (attention, attention_bytes)]
    assert all(flops / 100 >= moved / 50 for flops, moved in by_operations)
    by_memory = [qkv_bytes, out_bytes, down_bytes, single_bytes]
    assert qkv / 100 < qkv_bytes / 50
    assert out / 100 < out_bytes / 50
    assert down / 100 < down_bytes / 50
    computing = 3 * sum(flops / 100 for flops, _ in by_operations)
    assert cost.compute_seconds == pytest.approx(computing)
    assert cost.bound_seconds == pytest.approx(computing + 3 * sum(by_memory) / 50 + head_bytes / 50)
    assert cost.seconds == cost.bound_seconds


def test_attention_weights_that_are_watched():
    step = Step("step", rows=3, scored=1, visible=5)
    plain, watched = (forward_cost(TINY, SLOW, s, 2) for s in (step, replace(step, watched=True)))
    assert watched.bytes - plain.bytes == 3 * 2 * (6 * 5 * 2 * 4)  # layers, written and read, float32
    assert watched.flops == plain.flops


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_codes_that_are_read_and_written(kv_dtype):
    """A byte for each of the head's two numbers and four for the scale, where bfloat16 has two bytes a number."""
    step = Step("step", rows=3, scored=1, visible=5)
    plain, coded = (forward_cost(TINY, SLOW, s, 2) for s in (step, replace(step, kv_dtype=kv_dtype)))
    read, written = 2 * 2 * 5, 2 * 6  # requests, K and V, positions; K and V, rows
    assert coded.bytes - plain.bytes == 3 * (read + written) * ((2 + 4) - 2 * 2)
    assert coded.flops == plain.flops


def test_starting_kernels():
    """28 kernels a layer, however many requests: with a GPU the slower counts, on a CPU they come on top."""
    step = Step("step", rows=3, scored=1, visible=5)
    bound = forward_cost(TINY, SLOW, step, 2).seconds
    started = 3 * 28 * 2.0
    gpu, cpu = replace(SLOW, launch_seconds=2.0), replace(SLOW, launch_seconds=2.0, launches_overlap=False)
    assert started > bound
    assert forward_cost(TINY, gpu, step, 2).seconds == started
    assert forward_cost(TINY, cpu, step, 2).seconds == pytest.approx(bound + started)
    assert forward_cost(TINY, with_graphs(gpu), step, 2).seconds == bound
    normed = replace(TINY, qk_norm=True)
    assert forward_cost(normed, gpu, step, 2).seconds == 3 * (28 + 5) * 2.0


def test_experts_by_hand():
    """Three rows through two of four experts each, in the last of two layers; all choices are as likely."""
    moe = MoEConfig(num_experts=4, experts_per_token=2, ff_dim=5, shared_ff_dim=3, dense_layers=frozenset({0}))
    step = Step("step", rows=3, scored=1, visible=5)
    geometry = replace(TINY, num_layers=2, moe=moe)
    mixed, dense = (forward_cost(each, SLOW, step, 1) for each in (geometry, replace(geometry, moe=None)))
    rows, copies = 3, 6
    mlp = 2 * rows * 4 * 12 + 2 * rows * 6 * 4
    router, shared = 2 * rows * 4 * 4, 2 * rows * 4 * 6 + 2 * rows * 3 * 4
    experts = 2 * copies * 4 * 10 + 2 * copies * 5 * 4
    assert mixed.flops - dense.flops == router + shared + experts - mlp

    mlp_bytes = 2 * (48 + rows * 16) + 2 * (24 + rows * 10) + 2 * 3 * 6 * rows
    router_bytes = 2 * (16 + rows * 8)
    shared_bytes = 2 * (24 + rows * 10) + 2 * (12 + rows * 7) + 2 * 3 * 3 * rows
    read = 4 * (1 - 0.5**3)
    experts_bytes = 2 * (read * 40 + copies * 14) + 2 * (read * 20 + copies * 9) + 2 * 3 * 5 * copies
    moved = 2 * 4 * (3 * copies + 2 * rows)
    assert mixed.bytes - dense.bytes == pytest.approx(router_bytes + shared_bytes + experts_bytes + moved - mlp_bytes)
    started = replace(SLOW, launch_seconds=2.0)
    assert forward_cost(geometry, started, step, 1).seconds == 2.0 * (2 * 28 + MOE_LAUNCHES)


def test_fp8_halves_weights_and_doubles_their_products():
    step, h100 = Step("refresh", 1920, 32, 1920), HARDWARE["h100"]
    geometry = geometry_of("llada-8b")
    plain, fp8 = forward_cost(geometry, h100, step, 1), forward_cost(geometry, with_fp8(h100), step, 1)
    weights = geometry.num_parameters - geometry.vocab_size * geometry.dim - (2 * 32 + 1) * 4096
    assert plain.bytes - fp8.bytes == pytest.approx(weights, rel=1e-9)  # neither the embedding table nor the norms
    assert plain.flops == fp8.flops
    assert plain.seconds / 2 < fp8.seconds < plain.seconds


def test_a_small_forward_reads_the_weights_and_a_large_one_multiplies_them():
    """LLaDA-8B on an H100: 32 rows take what reading 15 GB takes, 1,920 rows what 2 x 7 G products a row take."""
    geometry, h100 = geometry_of("llada-8b"), with_graphs(HARDWARE["h100"])
    few = forward_cost(geometry, h100, Step("step", 32, 32, 1920), 1)
    many = forward_cost(geometry, h100, Step("refresh", 1920, 32, 1920), 1)
    assert few.compute_share == 0
    assert few.seconds == pytest.approx(15.0e9 / 3.35e12, rel=0.15)
    assert many.compute_share > 0.8
    assert many.seconds == pytest.approx(1920 * 2 * 6.98e9 / 989.4e12, rel=0.3)


@pytest.mark.slow
def test_rows_and_forwards_are_those_of_the_engine():
    """Of every method but d2, whose rows are the model's to say, and as many scored rows as the engine plans."""
    bounded = [
        f"engine/{cache}+{lookahead}" for cache in FULL_ATTENTION_CACHES if cache != "d2" for lookahead in (0, 16, 40)
    ]
    for batch, methods in (1, bounded), (3, METHODS):
        workload = Workload(prompt=24, gen=64, block=16, batch=batch, repeats=1, sample_steps=1000)
        for row in bench_decode(EngineConfig(model="tiny"), workload, methods):
            predicted = predict(row.method, TINY, SLOW, workload, max_batch_rows=2048)
            assert predicted.forwards == row.forwards, row.method
            if row.method != "engine/d2":
                assert predicted.rows == row.rows, row.method


def test_scored_rows():
    workload = Workload(prompt=24, gen=32, block=16, tokens_per_step=8)
    assert [step.scored for step in steps("engine/dual", workload)] == [16, 8, 16, 8]
    assert [step.scored for step in steps("reference/dual", workload)] == [56, 16, 56, 16]
    assert [step.kind for step in steps("engine/window", workload)] == ["refresh", "step"] * 2
    assert [step.scored for step in steps("engine/d2", workload)] == [32, 24, 16, 8]
    assert {step.visible for method in METHODS for step in steps(method, workload)} == {56}


def test_what_a_lookahead_sees():
    workload = Workload(prompt=24, gen=64, block=16, tokens_per_step=8)
    seen = [(step.rows, step.visible) for step in steps("engine/dual+16", workload)]
    assert seen == [(56, 56), (16, 56), (72, 72), (16, 72), (88, 88), (16, 88), (88, 88), (16, 88)]
    assert [step.scored for step in steps("engine/d2+16", workload)] == [32, 24, 32, 24, 32, 24, 16, 8]


def test_a_full_batch_is_several_forwards():
    workload = Workload(prompt=24, gen=32, block=16, tokens_per_step=8, batch=5)
    predicted = predict("engine/dual", TINY, SLOW, workload, max_batch_rows=112)
    assert predicted.forwards == 2 * (3 + 1)  # refreshes of 56 rows two by two, steps of 16 all at once
    assert predicted.rows == 5 * 2 * (56 + 16)
    one, two, five = (forward_cost(TINY, SLOW, s, n).seconds for s, n in [
        (Step("refresh", 56, 16, 56), 1), (Step("refresh", 56, 16, 56), 2), (Step("step", 16, 8, 56), 5)])  # fmt: skip
    assert predicted.cost.seconds == pytest.approx(2 * (one + 2 * two + five))
    assert predicted.tokens_per_second == pytest.approx(5 * 32 / predicted.cost.seconds)


def test_what_fits():
    geometry = geometry_of("llada-8b")

    def fits(name, batch):
        return predict("engine/dual", geometry, HARDWARE[name], Workload(batch=batch), 4096).fits

    # 16.03 GB of weights and 1.007 GB for each canvas of 1,920 tokens
    assert fits("h100", 55)
    assert not fits("h100", 56)
    assert fits("h200", 64)

    def fits_in_codes(batch):
        return predict("engine/dual:int8", geometry, HARDWARE["h100"], Workload(batch=batch), 4096).fits

    # 0.519 GB for each canvas: 264 KiB a token
    assert fits_in_codes(107)
    assert not fits_in_codes(108)


def test_named_geometries(published, llada_tiny):
    named, theirs = geometry_of("llada-8b"), published("llada-8b")
    assert (named.dim, named.num_layers, named.num_heads) == (theirs["d_model"], theirs["n_layers"], theirs["n_heads"])
    assert (named.ff_dim, named.vocab_size) == (theirs["mlp_hidden_size"], theirs["embedding_size"])
    assert named.num_kv_heads == theirs["n_kv_heads"]
    without_experts = {"small", "wide", "tiny", "llada-8b", "dream-7b", "sdar-8b"}
    assert without_experts | {"small-moe", "sdar-30b-a3b", "llada2-flash", "llada-moe-7b"} == set(GEOMETRIES)
    assert geometry_of("dream-7b").num_parameters == dream.Config.read(published("dream-7b")).geometry.num_parameters
    assert geometry_of("sdar-8b").num_parameters == 8_190_735_360, "Qwen3-8B's"
    large = geometry_of("sdar-30b-a3b")
    assert large.num_parameters == 30_532_122_624, "Qwen3-30B-A3B's"
    assert 3.3e9 < large.num_active_parameters < 3.4e9
    flash, theirs = geometry_of("llada2-flash"), llada2.Config.read(published("llada2-flash")).geometry
    assert (flash.num_parameters, flash.num_active_parameters) == (theirs.num_parameters, theirs.num_active_parameters)
    assert round(geometry_of("llada-moe-7b").num_parameters / 1e9, 1) == 7.4
    heads = attrgetter("num_heads", "num_kv_heads", "head_dim", "qkv_bias", "qk_norm")
    assert heads(geometry_of("dream-7b")) == (28, 4, 128, True, False)
    assert heads(geometry_of("sdar-8b")) == (32, 8, 128, False, True)
    assert geometry_of(str(llada_tiny)).dim == json.loads((llada_tiny / "config.json").read_text())["d_model"]
    with pytest.raises(LoadError):
        geometry_of("/nowhere")


def test_a_model_of_unlike_layers_is_refused_by_the_reason(diffusion_gemma_tiny):
    """Its formulas would count the heads of one kind of layer in all of them."""
    with pytest.raises(ConfigError, match=r"diffusion-gemma-tiny.*layers of other heads and windows"):
        geometry_of(str(diffusion_gemma_tiny))


def test_no_such_method():
    with pytest.raises(ConfigError, match="engine/lru"):
        list(steps("engine/lru", Workload()))


def test_this_machine_has_peaks(monkeypatch):
    """By the size of what is done, if each takes a second in all: a test that took the time would depend on others."""
    monkeypatch.setattr(hardware, "_seconds", lambda work: (work(), 1.0)[1])
    machine = hardware.measure_hardware(1)
    assert machine.flops == machine.weight_flops == 2 * hardware.SIZE**3
    assert machine.bandwidth == 2 * 4 * hardware.COPIED, "read once and written once"
    assert machine.launch_seconds == 1.0 / hardware.OPERATORS


def test_the_fastest_round_counts_but_the_first_which_sets_things_up(monkeypatch):
    now, lasting = [0.0], iter([0.1, 3.0, 2.0, 5.0])
    monkeypatch.setattr(hardware, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(hardware, "SECONDS", 8.0)

    def work():
        now[0] += next(lasting)

    assert hardware._seconds(work) == pytest.approx(2.0)
    assert next(lasting, None) is None
