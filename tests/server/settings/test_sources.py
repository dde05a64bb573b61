"""Settings from file, environment and flags; every complaint names the very thing to change."""

import re
from dataclasses import replace

import pytest

from engine import DEMO_MODEL, ConfigError, DiffusionParams
from server.settings.sources import load_settings
from server.settings.tree import options


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
    ("argv", "expected"),
    [([], False), (["--log-prompts"], True), (["--no-log-prompts"], False)],
)
def test_a_switch_needs_no_value(argv, expected):
    assert load_settings(argv, {}).server.log_prompts is expected
