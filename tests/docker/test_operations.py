"""The manual, held to what it describes."""

import re
import signal
from configparser import ConfigParser

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.cli import USAGE_ERROR
from server.http.lifecycle import GRACE_SECONDS
from server.settings.sources import load_settings
from server.settings.tree import ServerConfig, options

from .conftest import DOCKER, ROOT

MANUAL = (ROOT / "docs" / "operations.md").read_text()


def table(title):
    """The rows of the table whose first column is `title`, cells stripped."""
    lines = MANUAL.split(f"| {title} |")[1].splitlines()[2:]
    rows = lines[: next(number for number, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


@pytest.mark.slow
def test_the_table_of_metrics_is_what_a_server_shows(golden_server):
    text = httpx.get(f"{golden_server}/metrics").text
    shown = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("unmask_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels} - {"model_name", "le"}
            shown[f"`{name}`"] = (family.type, labels, family.documentation)
    told = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)), meaning) for name, kind, labels, meaning in table("metric")
    }
    assert told == shown


def test_every_alert_has_a_remedy():
    rules = yaml.safe_load((DOCKER / "prometheus" / "rules" / "alerts.yml").read_text())["groups"][0]["rules"]
    rows = table("alert")
    assert [f"`{rule['alert']}`" for rule in sorted(rules, key=lambda rule: rule["alert"])] == sorted(
        name for name, _, _ in rows
    )


@pytest.fixture
def service():
    """The `[Service]` section of the systemd unit."""
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read_string(re.search(r"```ini\n(.*?)```", MANUAL, re.DOTALL)[1])
    return unit["Service"]


def test_the_unit_starts_a_server_with_keys(service, tmp_path):
    program, command, *flags = service["ExecStart"].split()
    assert (program, command) == ("/opt/unmask/bin/unmask", "serve")
    (tmp_path / "settings.yaml").write_text("port: 8001\n")
    (tmp_path / "api-keys").write_text("a-key\n")
    places = {"/etc/unmask": str(tmp_path), "${CREDENTIALS_DIRECTORY}": str(tmp_path)}
    for place, here in places.items():
        assert any(place in flag for flag in flags)
        flags = [flag.replace(place, here) for flag in flags]
    settings = load_settings(flags, {})
    assert settings.server.port == 8001
    assert len(settings.server.api_key) == 1
    assert service["LoadCredential"].split(":")[0] == service["ExecStart"].rsplit("/", 1)[1]


def test_the_unit_knows_how_a_server_ends(service):
    assert int(service["TimeoutStopSec"]) > ServerConfig().shutdown_timeout + GRACE_SECONDS
    assert int(service["RestartPreventExitStatus"]) == USAGE_ERROR
    assert int(service["SuccessExitStatus"]) == 128 + signal.SIGTERM
    assert int(service["LimitNOFILE"]) > ServerConfig().max_connections


def test_the_unit_keeps_what_is_downloaded_and_compiled(service):
    image = (ROOT / "Dockerfile").read_text()
    kept = dict(pair.split("=") for pair in service["Environment"].split())
    for name, place in kept.items():
        assert place.startswith(f"%C/{service['CacheDirectory']}")
        assert f" {name}=/cache" in image
    assert image.count("=/cache") == len(kept)


def test_what_it_names_is_there():
    for path in re.findall(r"`((?:docker|configs|docs)/[\w./-]*)`", MANUAL):
        assert (ROOT / path).exists(), path
    for names in [row[0] for row in table("setting")]:
        for name in re.findall(r"`([\w.]+)(?:: \w+)?`", names):
            assert name in options(), name


def test_its_metrics_in_passing_are_in_its_table():
    known = {name.strip("`") for name, *_ in table("metric")}
    for name in re.findall(r"unmask_\w+_total|unmask_\w+_seconds", MANUAL):
        assert name in known, name
