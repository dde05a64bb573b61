"""The tree of settings: names of models, defaults, and a help text for each field."""

from dataclasses import fields
from pathlib import Path

from engine import BUNDLED, DEMO_MODEL, DiffusionParams, EngineConfig
from server.settings.sources import load_settings
from server.settings.tree import build, options


def test_the_bundled_models_have_names():
    settings = load_settings(["demo-block"], {})
    assert settings.engine.model == BUNDLED["demo-block"]
    assert Path(settings.engine.model).name == "demo-block", "the name that it is served under"


def test_without_a_word_the_demo_model_is_served():
    settings = load_settings([], {})
    assert settings.engine == EngineConfig(model=DEMO_MODEL)
    assert settings.diffusion == DiffusionParams()
    assert settings.server.host == "127.0.0.1"
    assert settings.model_names == ("demo",)


def test_every_field_is_an_option_with_a_help_text():
    table = options()
    for config in (EngineConfig, DiffusionParams):
        prefix = "diffusion." if config is DiffusionParams else ""
        assert {prefix + field.name for field in fields(config)} <= set(table)
    for option in table.values():
        assert option.doc.endswith(".")


def test_a_folder_is_served_under_its_last_name(tmp_path):
    assert build({"model": str(tmp_path)}).model_names == (tmp_path.name,)
    assert build({"model": "org/model"}).model_names == ("org/model",)
