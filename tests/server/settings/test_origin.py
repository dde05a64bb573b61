"""Origins: as browsers send them, and nothing else."""

import pytest

from engine import ConfigError
from server.settings.sources import load_settings


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
