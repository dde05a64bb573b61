"""Settings: file, environment, flags; every complaint names the very thing to change."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from engine import BUNDLED, DEMO_MODEL, ConfigError, DiffusionParams, EngineConfig
from server.settings.sources import load_settings
from server.settings.tree import build, options

CONFIGS = Path(__file__).parents[3] / "configs"
BLOCK_CAUSAL = {
    "sdar-1.7b": "JetLM/SDAR-1.7B-Chat",
    "sdar-4b": "JetLM/SDAR-4B-Chat",
    "sdar-8b": "JetLM/SDAR-8B-Chat",
    "fast-dllm-v2-1.5b": "Efficient-Large-Model/Fast_dLLM_v2_1.5B",
    "fast-dllm-v2-7b": "Efficient-Large-Model/Fast_dLLM_v2_7B",
}


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return str(path)

    return write


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


def test_help_shows_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        load_settings(["--help"], {})
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # lines may end with a word's hyphen
    for option in options().values():
        assert option.doc.replace("- ", "-") in shown
        assert option.key == "model" or re.search(rf"--{option.key.replace('_', '-')}[ ,]", shown)


def test_flags_outrank_the_environment_which_outranks_the_file(file):
    path = file("port: 1\nhost: file\nlog_level: error\ndiffusion: {cache: none, factor: 2}\n")
    environ = {"UNMASK_HOST": "environment", "UNMASK_LOG_LEVEL": "debug", "UNMASK_DIFFUSION__CACHE": "prefix"}
    settings = load_settings(["--config", path, "--log-level", "info", "--diffusion.factor=3"], environ)
    assert (settings.server.port, settings.server.host, settings.server.log_level) == (1, "environment", "info")
    assert settings.diffusion == replace(DiffusionParams(), cache="prefix", factor=3.0)


@pytest.mark.parametrize(
    ("argv", "environ", "text"),
    [
        (["--diffusion.lookahead", "null"], {}, ""),
        ([], {"UNMASK_DIFFUSION__LOOKAHEAD": "null"}, ""),
        ([], {}, "diffusion: {lookahead: null}"),
    ],
)
def test_null_in_each_source(file, argv, environ, text):
    assert load_settings([*argv, "--config", file(text)], environ).diffusion.lookahead is None


def test_null_is_no_value_of_what_must_have_one():
    with pytest.raises(ConfigError, match="UNMASK_PORT should be a valid integer, not 'null'"):
        load_settings([], {"UNMASK_PORT": "null"})


def test_the_model_is_a_positional_and_a_key(file):
    path = file("model: from/file")
    assert load_settings(["--config", path], {}).engine.model == "from/file"
    assert load_settings(["org/model", "--config", path], {}).engine.model == "org/model"
    assert load_settings([], {"UNMASK_MODEL": "demo"}).engine.model == DEMO_MODEL


def test_dashes_and_underscores_are_the_same(file):
    path = file("max-model-len: 100\npage_size: 16\n")
    settings = load_settings(["--config", path, "--max_batch_rows=200", "--num-threads", "2"], {})
    engine = settings.engine
    assert (engine.max_model_len, engine.page_size, engine.max_batch_rows, engine.num_threads) == (100, 16, 200, 2)


@pytest.mark.parametrize(
    ("argv", "environ", "text"),
    [
        (["--served-model-name", "a", "--served-model-name=b"], {}, ""),
        (["--served-model-name", "a, b"], {}, ""),
        ([], {"UNMASK_SERVED_MODEL_NAME": "a,b"}, ""),
        ([], {"UNMASK_SERVED_MODEL_NAME": " a , b, "}, ""),
        ([], {}, "served_model_name: [a, b]"),
        ([], {}, "served_model_name: [a, ' b ']"),
        ([], {}, "served_model_name: a, b"),
    ],
)
def test_a_list_in_each_source(file, argv, environ, text):
    assert load_settings([*argv, "--config", file(text)], environ).model_names == ("a", "b")


@pytest.mark.parametrize(
    ("argv", "environ", "text", "on"),
    [
        ([], {}, "", False),
        (["--docs"], {}, "", True),
        (["--no-docs"], {"UNMASK_DOCS": "true"}, "", False),
        ([], {"UNMASK_DOCS": "1"}, "", True),
        ([], {}, "docs: true", True),
    ],
)
def test_a_switch_in_each_source(file, argv, environ, text, on):
    assert load_settings([*argv, "--config", file(text)], environ).server.docs is on


def test_a_folder_is_served_under_its_last_name(tmp_path):
    assert build({"model": str(tmp_path)}).model_names == (tmp_path.name,)
    assert build({"model": "org/model"}).model_names == ("org/model",)


def test_an_empty_variable_counts_as_absent():
    assert load_settings([], {"UNMASK_PORT": "", "PORT": "7"}).server.port == 8000


@pytest.mark.parametrize(
    ("argv", "environ", "text", "complaint"),
    [
        (["--prot", "1"], {}, "", "--prot is not a flag; did you mean --port?"),
        (["--kv"], {}, "", "--kv is not a flag"),
        (["a", "b"], {}, "", "there is one MODEL at most: b is too many"),
        (["-p", "80"], {}, "", "-p is not a flag"),
        (["--port"], {}, "", "argument --port: expected one argument"),
        ([], {"UNMASK_PROT": "1"}, "", "UNMASK_PROT is not a setting; did you mean UNMASK_PORT?"),
        ([], {"UNMASK_DIFFUSION__CASH": "1"}, "", "did you mean UNMASK_DIFFUSION__CACHE?"),
        ([], {}, "prot: 1", "prot in {path} is not a setting; did you mean port in {path}?"),
        ([], {}, "diffusion: {cash: 1}", "diffusion.cash in {path} is not a setting; did you mean diffusion.cache"),
        ([], {}, "diffusion:\nport: 1", "diffusion in {path} is empty: give its settings"),
        ([], {}, "diffusion: dual", "diffusion in {path} is no mapping: give its settings"),
        ([], {}, "port: 1\nport: 2", "port is set twice (line 2, column 1)"),
        ([], {}, "page-size: 1\npage_size: 2", "page_size is set twice (line 2"),
        ([], {}, "diffusion: {steps: 1, steps: 2}", "steps is set twice (line 1"),
        ([], {}, "diffusion.steps: 1\ndiffusion: {steps: 2}", "diffusion.steps in {path} is set twice"),
        ([], {}, "port: yes", "port in {path} should be a valid integer, not True"),
        ([], {}, "max_batch_rows: on", "max_batch_rows in {path} should be a valid integer, not True"),
        ([], {}, "temperature: no", "temperature in {path} should be a valid number, not False"),
        ([], {}, "diffusion: {threshold: yes}", "diffusion.threshold in {path} should be a valid number, not True"),
        ([], {}, "host: off", "host in {path} should be a valid string, not False"),
        ([], {}, "port: 2026-13-01", "{path} is not valid YAML (ValueError)"),
        ([], {}, "port: " + "[" * 2000, "{path} is not valid YAML: it is nested too deeply"),
        ([], {}, "[]", "{path} must hold a mapping of settings, not a list"),
        ([], {}, "served_model_name: 1.5", "served_model_name in {path} should be a text or a list of texts"),
        ([], {}, "served_model_name: [a, '']", "served_model_name in {path} holds an empty entry, not ['a', '']"),
        ([], {"UNMASK_SERVED_MODEL_NAME": "a,,b"}, "", "UNMASK_SERVED_MODEL_NAME holds an empty entry, not 'a,,b'"),
        (["--served-model-name="], {}, "", "--served-model-name holds an empty entry"),
        ([], {}, "server: {port: 1}", "server.port in {path} is not a setting"),
        ([], {}, "[1, 2]", "{path} must hold a mapping"),
        ([], {}, "a: [", "{path} is not valid YAML"),
        (["--port", "x"], {}, "", "--port should be a valid integer, not 'x'"),
        (["--port", "70000"], {}, "", "--port should be less than or equal to 65535, not '70000'"),
        ([], {"UNMASK_TEMPERATURE": "3"}, "", "UNMASK_TEMPERATURE should be less than or equal to 2, not '3'"),
        ([], {}, "stuck_after: 0", "stuck_after in {path} should be greater than 0, not 0"),
        ([], {}, "port: null", "port in {path} should be a valid integer, not None"),
        (["--shutdown-timeout", "nan"], {}, "", "--shutdown-timeout should be"),
        (["--diffusion.cache", "dul"], {}, "", "--diffusion.cache must be one of auto, none, prefix, dual"),
        ([], {}, "dtype: float8", "dtype in {path} must be one of auto, float32"),
        (["--diffusion.block-length", "0"], {}, "", "--diffusion.block-length should be greater than or equal to 1"),
        (["--page-size", "0"], {}, "", "page_size is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_named(file, argv, environ, text, complaint):
    path = file(text)
    with pytest.raises(ConfigError) as error:
        load_settings([*argv, "--config", path], environ)
    assert complaint.format(path=path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("https://a.example, https://b.example", ("https://a.example", "https://b.example")),
        ("https://a.example,", ("https://a.example",)),
        ("HTTPS://A.Example:443/", ("https://a.example",)),
        ("http://localhost:80,http://[::1]:3000", ("http://localhost", "http://[::1]:3000")),
        ("*", ("*",)),
        ("null,tauri://localhost", ("null", "tauri://localhost")),
    ],
)
def test_origins_are_what_browsers_send(file, text, origins):
    assert load_settings([], {"UNMASK_ALLOWED_ORIGINS": text}).server.allowed_origins == origins
    assert load_settings(["--allowed-origins", text], {}).server.allowed_origins == origins
    assert load_settings(["--config", file(f"allowed_origins: '{text}'")], {}).server.allowed_origins == origins


@pytest.mark.parametrize(
    "text",
    [
        "a.example",
        "https://a.example/page",
        "https://*.example",
        "https://a.example?",
        "https://a b",
        "https://k@a",
        "'*'",
    ],
)
def test_what_no_browser_sends_is_no_origin(text):
    with pytest.raises(ConfigError, match=r"UNMASK_ALLOWED_ORIGINS (must hold origins as|holds quotes)"):
        load_settings([], {"UNMASK_ALLOWED_ORIGINS": text})


@pytest.mark.parametrize("key", [option.key for option in options().values() if option.is_list])
def test_a_list_does_not_take_the_model(key):
    flag = f"--{key.replace('_', '-')}"
    settings = load_settings([flag, "https://a.example", "demo"], {"UNMASK_MODEL": "not/this"})
    assert settings.engine.model == DEMO_MODEL
    [entry] = getattr(settings.server, key)
    assert getattr(entry, "get_secret_value", lambda: entry)() == "https://a.example"


def test_what_is_too_many_for_a_list_is_told_how_to_give_it():
    with pytest.raises(ConfigError, match="give --api-key again for each entry") as error:
        load_settings(["model", "--api-key", "key-one", "key-two"], {})
    assert "key-two" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "api_key: [SECRET",
        "api_key: 'SECRET",
        "api_key: *SECRET",
        "api_key: !SECRET x",
        "api_key: SECRET: x",
        'api_key: "\\SECRET"',
        "api_key: SECRET\n\tport: 1",
        "api_key: &SECRET a\nhost: &SECRET b\nport: [",
        "- SECRET",
        "SECRET",
        "api_key: {SECRET",
        "api_key: [[SECRET]]",
        "api_key: '\"SECRET\"'",
        "api_key: ['', SECRET]",
        "api_keys: SECRET",
        "port: 1\nport: 2 # SECRET",
    ],
)
def test_no_complaint_about_a_file_quotes_it(file, text):
    with pytest.raises(ConfigError) as error:
        load_settings(["--config", file(text)], {})
    assert "SECRET" not in str(error.value)


def test_a_tab_is_named(file):
    with pytest.raises(ConfigError, match=r"found character '\\t' that cannot start any token \(line 1, column 7\)"):
        load_settings(["--config", file("port: \t1")], {})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, encoding):
    keys, config = tmp_path / "keys", tmp_path / "settings.yaml"
    keys.write_text("key-one\r\n\r\n key-two \n", encoding=encoding)
    config.write_text(f"api_key_file: {keys}\n", encoding=encoding)
    settings = load_settings(["--config", str(config)], {})
    assert [key.get_secret_value() for key in settings.server.api_key] == ["key-one", "key-two"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_settings(["--config", str(tmp_path / "nowhere.yaml")], {})


@pytest.mark.parametrize(
    ("name", "model", "served"),
    [
        ("demo", DEMO_MODEL, "demo"),
        ("llada-8b-instruct", "GSAI-ML/LLaDA-8B-Instruct", "llada-8b-instruct"),
        ("llada-1.5", "GSAI-ML/LLaDA-1.5", "llada-1.5"),
        ("dream-v0-instruct-7b", "Dream-org/Dream-v0-Instruct-7B", "dream-v0-instruct-7b"),
        ("dream-coder-7b", "Dream-org/Dream-Coder-v0-Instruct-7B", "dream-coder-7b"),
        ("diffucoder-7b", "apple/DiffuCoder-7B-cpGRPO", "diffucoder-7b"),
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


def test_every_config_that_ships_is_tested():
    tested = {"demo", "llada-8b-instruct", "llada-1.5", "dream-v0-instruct-7b", "dream-coder-7b", "diffucoder-7b"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == tested | set(BLOCK_CAUSAL)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [([], False), (["--log-prompts"], True), (["--no-log-prompts"], False)],
)
def test_a_switch_needs_no_value(argv, expected):
    assert load_settings(argv, {}).server.log_prompts is expected
