"""The memory plan against published sizes, against what loading takes, and its refusals."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from engine import ConfigError, DiffusionParams, EngineConfig, LoadError, load, plan_memory

CONFIGS = Path(__file__).parents[3] / "configs"
GIB = 2**30


@pytest.fixture
def folder(published, tmp_path):
    """A checkpoint of nothing but a published config.json, and the mask that only a tokenizer may know."""

    def write(name):
        (tmp_path / "config.json").write_text(json.dumps(published(name)))
        texts = {151665: "|<MASK>|", 156895: "<|mask|>", 156892: "<|endoftext|>", 156900: "<|role_end|>"}
        added = {str(id_): {"content": text} for id_, text in texts.items()}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    ("name", "max_model_len", "billions", "kib_per_token", "canvases_in_80_gib"),
    # (0.9 * 80 GiB - 2 bytes a parameter - a step) // (bytes of a canvas), by hand
    [("llada-8b", 4096, 8.0, 512, 27), ("dream-7b", 2048, 7.6, 56, 508)],
)
def test_the_published_sizes(folder, name, max_model_len, billions, kib_per_token, canvases_in_80_gib):
    engine_config = EngineConfig(model=folder(name), max_model_len=max_model_len)
    plan = plan_memory(engine_config, 80 * GIB)
    assert plan.max_batch_rows == {"llada-8b": 4096 + 64 * 32, "dream-7b": 2048 + 64 * 33}[name]
    assert plan.family == {"llada-8b": "llada", "dream-7b": "Dream"}[name]
    assert round(plan.num_parameters / 1e9, 1) == billions
    bfloat16 = plan.footprints["bfloat16"]
    assert bfloat16.weight_bytes == 2 * plan.num_parameters
    assert bfloat16.kv_bytes_per_token == kib_per_token * 1024
    assert bfloat16.canvases == canvases_in_80_gib
    assert plan.footprints["float16"] == bfloat16
    float32 = plan.footprints["float32"]
    assert float32.weight_bytes == 2 * bfloat16.weight_bytes
    assert float32.kv_bytes_per_token == 2 * bfloat16.kv_bytes_per_token


@pytest.mark.parametrize(
    ("name", "family", "billions", "kib_per_token"),
    [
        ("sdar-1.7b", "sdar", 2.0, 112),
        ("sdar-4b", "sdar", 4.4, 144),
        ("sdar-8b", "sdar", 8.2, 144),
        ("fast-dllm-v2-1.5b", "Fast_dLLM_Qwen", 1.5, 28),
        ("fast-dllm-v2-7b", "Fast_dLLM_Qwen", 7.6, 56),
        ("nemotron-labs-diffusion-3b", "nemotron_labs_diffusion", 3.8, 104),
        ("nemotron-labs-diffusion-8b", "nemotron_labs_diffusion", 8.5, 136),
        ("nemotron-labs-diffusion-14b", "nemotron_labs_diffusion", 13.5, 160),
    ],
)
def test_the_published_sizes_of_block_causal_families(folder, name, family, billions, kib_per_token):
    """On a card of 24 GB, or of 48 from 8.5 B parameters on, each has room for several canvases of its config."""
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    keys = ("max_model_len", "max_running_requests", "memory_fraction")
    card = 24_000_000_000 if billions < 8.5 else 48_000_000_000
    plan = plan_memory(EngineConfig(model=folder(name), **{key: settings[key] for key in keys}), card)
    footprint = plan.footprints[settings["dtype"]]
    assert plan.family == family
    assert round(plan.num_parameters / 1e9, 1) == billions
    assert footprint.weight_bytes == 2 * plan.num_parameters
    assert footprint.kv_bytes_per_token == kib_per_token * 1024
    assert footprint.canvases >= 4


@pytest.mark.parametrize(
    ("name", "family", "billions", "active", "kib_per_token", "card"),
    [
        ("llada-moe-7b", "llada_moe", 7.4, 1.7, 128, 24),
        ("llada2-mini", "llada2_moe", 16.3, 1.4, 40, 48),
        ("sdar-30b-a3b", "sdar_moe", 30.5, 3.4, 96, 80),
        ("llada2-flash", "llada2_moe", 102.9, 6.2, 64, 288),
        ("llada2.2-flash", "llada2_moe", 102.9, 6.2, 64, 288),
        ("diffusiongemma-26b-a4b", "diffusion_gemma", 25.3, 3.8, 231, 80),
    ],
)
def test_the_published_sizes_of_families_with_experts(folder, name, family, billions, active, kib_per_token, card):
    """On a card of so many GB each has room for several canvases of its config. Routers are float32."""
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    keys = ("max_model_len", "max_running_requests", "memory_fraction", "max_batch_rows")
    config = EngineConfig(model=folder(name), **{key: settings[key] for key in keys if key in settings})
    plan = plan_memory(config, card * 10**9)
    footprint = plan.footprints[settings["dtype"]]
    assert plan.family == family
    assert (round(plan.num_parameters / 1e9, 1), round(plan.num_active_parameters / 1e9, 1)) == (billions, active)
    assert 2 * plan.num_parameters < footprint.weight_bytes < 2.01 * plan.num_parameters
    assert footprint.kv_bytes_per_token == kib_per_token * 1024
    assert footprint.canvases >= 4


def test_more_requests_run_than_canvases_fit(folder):
    """Of 4,096 positions, half of them prompt, a first block of 32 that looks 32 ahead opens 2,112: 66 pages of 128."""
    config = EngineConfig(model=folder("llada-8b"), max_model_len=4096)
    bounded, whole = (
        plan_memory(config, 80 * GIB, DiffusionParams(lookahead=lookahead)).footprints["bfloat16"]
        for lookahead in (32, None)
    )
    assert whole.openings == whole.canvases == bounded.canvases
    assert bounded.openings == (bounded.kv_tokens // 32 - (128 - 66)) // 66 > 1.9 * whole.openings
    assert plan_memory(config, 80 * GIB).footprints["bfloat16"] == bounded


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("name", "bytes_per_token"), [("llada-8b", 270_336), ("dream-7b", 29_568), ("sdar-8b", 76_032)]
)
def test_codes_hold_nearly_twice_the_tokens_of_bfloat16(folder, kv_dtype, name, bytes_per_token):
    """2 layers kv_heads (128 + 4) bytes: a byte for each number, and a float32 scale for each head."""
    plain, coded = (
        plan_memory(EngineConfig(model=folder(name), max_model_len=2048, kv_dtype=format_), 40 * GIB).footprints
        for format_ in ("auto", kv_dtype)
    )
    assert {footprint.kv_bytes_per_token for footprint in coded.values()} == {bytes_per_token}
    assert coded["bfloat16"].kv_tokens > 1.9 * plain["bfloat16"].kv_tokens
    assert coded["bfloat16"].step_bytes == plain["bfloat16"].step_bytes


@pytest.mark.parametrize(("name", "ranks"), [("llada-8b", 2), ("dream-7b", 4)])
def test_each_of_several_devices_has_its_part(folder, name, ranks):
    """Products and tables are cut, norms are not; rank 0 scores the whole vocabulary."""
    config = EngineConfig(model=folder(name), max_model_len=2048)
    one = plan_memory(config, 40 * GIB)
    each = plan_memory(replace(config, tensor_parallel_size=ranks), 40 * GIB)
    assert (each.num_devices, each.num_parameters) == (ranks, one.num_parameters)
    alone, part = one.footprints["bfloat16"], each.footprints["bfloat16"]
    assert alone.weight_bytes / ranks < part.weight_bytes < 1.001 * alone.weight_bytes / ranks
    assert part.kv_bytes_per_token == alone.kv_bytes_per_token // ranks
    assert alone.step_bytes / ranks < part.step_bytes < alone.step_bytes
    assert part.kv_tokens > ranks * alone.kv_tokens
    with pytest.raises(ConfigError, match="is 5, which does not divide the model"):
        plan_memory(replace(config, tensor_parallel_size=5), 40 * GIB)


def test_a_memory_too_small_holds_nothing(folder):
    plan = plan_memory(EngineConfig(model=folder("llada-8b")), 12 * GIB)
    assert {(each.kv_tokens, each.canvases) for each in plan.footprints.values()} == {(0, 0)}


@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "fp8"])
def test_it_is_the_arithmetic_of_loading(dream_tiny, kv_dtype):
    """No weights are read: a copy of the config alone plans as the engine then loads."""
    memory = 128 * 2**20
    plan = plan_memory(EngineConfig(model=str(dream_tiny), memory_fraction=0.5, kv_dtype=kv_dtype), memory)
    planned = plan.footprints["float32"]
    info = load(EngineConfig(model=str(dream_tiny), kv_cache_tokens=planned.kv_tokens, kv_dtype=kv_dtype)).info
    assert info.max_batch_rows == plan.max_batch_rows
    assert (info.num_parameters, info.weight_bytes) == (plan.num_parameters, planned.weight_bytes)
    assert info.kv_tokens == planned.kv_tokens
    assert info.kv_bytes == planned.kv_tokens * planned.kv_bytes_per_token
    one_page = planned.kv_bytes_per_token * info.page_size
    assert memory // 2 - one_page < info.weight_bytes + planned.step_bytes + info.kv_bytes <= memory // 2
    assert plan.memory_bytes == memory // 2


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_what_positions_carry_beside_their_tokens_is_planned_and_reported(diffusion_gemma_tiny, kv_dtype):
    config = EngineConfig(
        model=str(diffusion_gemma_tiny), device="cpu", max_model_len=64, kv_cache_tokens=128, kv_dtype=kv_dtype
    )
    planned = plan_memory(config, GIB).footprints["float32"]
    engine = load(config)
    assert engine.info.kv_bytes == 128 * planned.kv_bytes_per_token
    vectors = engine.runner._vectors
    assert engine.info.kv_bytes == engine.runner.pool.num_bytes + vectors[: 2 * 128].nbytes
    assert len(vectors) == 2 * (128 + 1)


def test_the_hub_is_asked_for_no_weights(monkeypatch, dream_tiny):
    asked = []

    def download(model, *, revision, allow_patterns):
        asked.append((model, revision, allow_patterns))
        return dream_tiny

    monkeypatch.setattr("engine.models.weights.snapshot_download", download)
    plan_memory(EngineConfig(model="Dream-org/Dream-v0-Instruct-7B", revision="main"), GIB)
    [(model, revision, patterns)] = asked
    assert (model, revision) == ("Dream-org/Dream-v0-Instruct-7B", "main")
    assert "*.json" in patterns
    assert not any("safetensors" in pattern for pattern in patterns)


def test_refusals(folder, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(LoadError, match="known families: llada"):
        plan_memory(EngineConfig(model=str(tmp_path)), GIB)
    with pytest.raises(ConfigError, match="own limit is 4096"):
        plan_memory(EngineConfig(model=folder("llada-8b"), max_model_len=5000), GIB)
    with pytest.raises(ConfigError, match="max_batch_rows is 100"):
        plan_memory(EngineConfig(model=folder("llada-8b"), max_batch_rows=100), GIB)


@pytest.mark.parametrize("name", ["dream-v0-instruct-7b", "dream-coder-7b", "diffucoder-7b"])
def test_the_configs_fit_the_gpu_they_are_for(folder, name):
    """Each on a 24 GB card: its weights and dozens of its canvases."""
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    config = EngineConfig(
        model=folder("dream-7b"),
        max_model_len=settings["max_model_len"],
        max_batch_rows=settings["max_batch_rows"],
        memory_fraction=settings["memory_fraction"],
    )
    plan = plan_memory(config, 24_000_000_000)
    assert plan.footprints[settings["dtype"]].canvases >= 32
    assert settings["served_model_name"][1] == settings["model"]
