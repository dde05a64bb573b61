"""What a replica's steps take: the roofline's figures for batches that are all alike, and what more devices change."""

import pytest

from engine import HARDWARE, ConfigError, EngineConfig, Step, forward_cost, geometry_of, with_graphs
from engine.bench.simulate.machine import Machine
from engine.bench.simulate.served import decoding_of, replica_of
from engine.models.families import llada2, sdar_moe


def machine(model="llada-8b", hardware="h100", **fields):
    return Machine(model, hardware, **{"max_batch_rows": 2048, "efficiency": 1.0, **fields})


@pytest.mark.parametrize("model", ["llada-8b", "sdar-30b-a3b", "llada2-flash"])
@pytest.mark.parametrize(("rows", "requests"), [(32, 1), (32, 16), (900, 2)])
def test_a_batch_of_equal_requests_takes_what_the_roofline_says(model, rows, requests):
    step = Step("step", rows, 28, 1000)
    hardware = HARDWARE["h100"] if rows * requests > 512 else with_graphs(HARDWARE["h100"])
    expected = forward_cost(geometry_of(model), hardware, step, requests).seconds
    asked = (rows * requests, 28 * requests, 1000 * requests, rows * requests * 1000)
    assert machine(model).seconds(*asked) == pytest.approx(expected)
    assert machine(model, efficiency=0.5).seconds(*asked) == pytest.approx(2 * expected)


def test_devices_of_a_machine_share_the_work_but_not_all_of_it():
    asked = 512, 448, 16 * 2000, 512 * 2000
    one, two, eight = (machine(devices=devices).seconds(*asked) for devices in (1, 2, 8))
    assert one / 2 < two < one
    assert one / 8 < eight < two
    # Four heads of keys and values among eight devices: two have the same, and each reads it.
    few, more = (machine("sdar-30b-a3b", devices=devices) for devices in (4, 8))
    assert more.seconds(8, 8, 10**7, 1) > 0.95 * few.seconds(8, 8, 10**7, 1)


def test_what_fits():
    """LLaDA-8B: 72 GB, less 16 of weights and 1.5 of a step, at 512 KiB a token; the 100 B MoE needs three devices."""
    assert 100_000 < machine().kv_tokens < 108_000
    assert machine(kv_dtype="int8").kv_tokens == pytest.approx(machine().kv_tokens * 1.94, rel=0.01)
    with pytest.raises(ConfigError, match=r"llada2-flash does not fit on 2 x H100 SXM: weights take 102.9 of 72.0 GB"):
        _ = machine("llada2-flash", devices=2).kv_tokens
    assert machine("llada2-flash", devices=4).kv_tokens > 10**6
    with pytest.raises(ConfigError, match="32 heads do not divide among 3 devices"):
        machine(devices=3)


@pytest.mark.parametrize(("model", "family"), [("sdar-30b-a3b", sdar_moe), ("llada2-flash", llada2)])
def test_trained_blocks_are_the_published_ones(published, model, family):
    config = family.Config.read(published(model))
    spec = config.spec({"<|mask|>": 1, "<|endoftext|>": 2, "<|role_end|>": 3})
    assert decoding_of(model).block == spec.block_length
    assert decoding_of(model).cache == "block"
    assert decoding_of(model).tokens_per_forward == min(4, spec.block_length // 2)


def test_decoding_is_what_a_model_was_trained_for(llada_tiny, sdar_tiny):
    assert decoding_of("llada-8b").cache == "dual+32"
    assert decoding_of(str(llada_tiny), cache="window", lookahead=None).cache == "window"
    assert decoding_of(str(sdar_tiny)).block == 4
    with pytest.raises(ConfigError, match="'dual' does not fit sdar-30b-a3b, which is block-causal"):
        decoding_of("sdar-30b-a3b", cache="dual")
    with pytest.raises(ConfigError, match="'block' does not fit llada-8b, which attends in both directions"):
        decoding_of("llada-8b", cache="block")


def test_limits_are_the_engines():
    def limits(**fields):
        config = EngineConfig(model="llada-8b", max_model_len=2048, **fields)
        return replica_of(config, decoding_of("llada-8b"), "h100")[1]

    assert limits().max_batch_rows == 2048 + 64 * 32
    assert limits(max_running_requests=4).kv_tokens == 4 * 2048, "no more than the running requests need"
    assert limits(kv_cache_tokens=50_000).kv_tokens == 50_000
    with pytest.raises(ConfigError, match="max_batch_rows is 100"):
        limits(max_batch_rows=100)
    with pytest.raises(ConfigError, match="keys and values of 9000000 tokens do not fit"):
        limits(kv_cache_tokens=9_000_000)
    with pytest.raises(ConfigError, match="a canvas of max_model_len 2048 do"):
        limits(kv_cache_tokens=1000)
