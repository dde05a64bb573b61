"""The file of settings: how it is read, and that no complaint quotes it."""

import pytest

from engine import ConfigError
from server.settings.sources import load_settings


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
