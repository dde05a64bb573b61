"""The files of configs/ that ship."""

from pathlib import Path

import pytest
import yaml

from engine import DEMO_MODEL, DiffusionParams
from server.settings.sources import load_settings

CONFIGS = Path(__file__).parents[3] / "configs"
BLOCK_CAUSAL = {
    "sdar-1.7b": "JetLM/SDAR-1.7B-Chat",
    "sdar-4b": "JetLM/SDAR-4B-Chat",
    "sdar-8b": "JetLM/SDAR-8B-Chat",
    "fast-dllm-v2-1.5b": "Efficient-Large-Model/Fast_dLLM_v2_1.5B",
    "fast-dllm-v2-7b": "Efficient-Large-Model/Fast_dLLM_v2_7B",
    "sdar-30b-a3b": "JetLM/SDAR-30B-A3B-Chat",
}
NEMOTRON = {
    f"nemotron-labs-diffusion-{size.lower()}": f"nvidia/Nemotron-Labs-Diffusion-{size}" for size in ("3B", "8B", "14B")
}
LLADA2 = {"llada2-mini": "inclusionAI/LLaDA2.0-mini", "llada2-flash": "inclusionAI/LLaDA2.0-flash"}


@pytest.mark.parametrize(
    ("name", "model", "served"),
    [
        ("demo", DEMO_MODEL, "demo"),
        ("llada-8b-instruct", "GSAI-ML/LLaDA-8B-Instruct", "llada-8b-instruct"),
        ("llada-1.5", "GSAI-ML/LLaDA-1.5", "llada-1.5"),
        ("dream-v0-instruct-7b", "Dream-org/Dream-v0-Instruct-7B", "dream-v0-instruct-7b"),
        ("dream-coder-7b", "Dream-org/Dream-Coder-v0-Instruct-7B", "dream-coder-7b"),
        ("diffucoder-7b", "apple/DiffuCoder-7B-cpGRPO", "diffucoder-7b"),
        ("llada-moe-7b", "inclusionAI/LLaDA-MoE-7B-A1B-Instruct", "llada-moe-7b"),
    ],
)
def test_the_configs_that_ship(name, model, served):
    settings = load_settings(["--config", str(CONFIGS / f"{name}.yaml")], {})
    assert settings.engine.model == model
    assert settings.model_names[0] == served
    assert settings.diffusion.cache == "dual"


@pytest.mark.parametrize(("name", "model"), BLOCK_CAUSAL.items())
def test_the_configs_of_block_causal_families(name, model):
    """How they decode comes from the engine."""
    path = CONFIGS / f"{name}.yaml"
    settings = load_settings(["--config", str(path)], {})
    assert settings.engine.model == model
    assert settings.model_names == (name, model)
    assert "diffusion" not in yaml.safe_load(path.read_text())


@pytest.mark.parametrize(("name", "model"), LLADA2.items())
def test_the_configs_of_llada2(name, model):
    """The threshold and the fallback of its own sampler; the cache comes from the engine."""
    settings = load_settings(["--config", str(CONFIGS / f"{name}.yaml")], {})
    assert (settings.engine.model, settings.model_names) == (model, (name, model))
    diffusion = settings.diffusion
    assert (diffusion.cache, diffusion.unmask, diffusion.threshold) == ("auto", "low_confidence_dynamic", 0.95)


def test_the_config_of_llada2_2():
    """The settings that its authors recommend."""
    settings = load_settings(["--config", str(CONFIGS / "llada2.2-flash.yaml")], {})
    assert settings.engine.model == "inclusionAI/LLaDA2.2-flash"
    assert settings.diffusion == DiffusionParams(
        unmask="insert_delete", threshold=0.5, editing_threshold=0.0, max_post_steps=16
    )


@pytest.mark.parametrize(("name", "model"), NEMOTRON.items())
def test_the_configs_of_nemotron(name, model):
    """The threshold of its own sampler; cache and block come from the engine."""
    settings = load_settings(["--config", str(CONFIGS / f"{name}.yaml")], {})
    assert (settings.engine.model, settings.model_names) == (model, (name, model))
    diffusion = settings.diffusion
    assert (diffusion.cache, diffusion.unmask, diffusion.block_length) == ("auto", "threshold", None)


def test_the_config_of_diffusion_gemma():
    """Its own sampler, at the published settings, which are the defaults."""
    settings = load_settings(["--config", str(CONFIGS / "diffusiongemma-26b-a4b.yaml")], {})
    assert settings.engine.model == "google/diffusiongemma-26B-A4B-it"
    assert settings.diffusion == DiffusionParams(unmask="renoise")


def test_every_config_that_ships_is_tested():
    tested = {"demo", "llada-8b-instruct", "llada-1.5", "dream-v0-instruct-7b", "dream-coder-7b", "diffucoder-7b"}
    tested |= {"llada-moe-7b", *BLOCK_CAUSAL, *LLADA2, *NEMOTRON, "diffusiongemma-26b-a4b", "llada2.2-flash"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == tested
    page = (CONFIGS.parent / "docs" / "models.md").read_text()
    assert [name for name in tested if f"`{name}`" not in page] == []
