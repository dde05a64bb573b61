"""The manual, held to what it describes."""

import re

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.settings import options

from .conftest import DOCKER, ROOT

MANUAL = (ROOT / "docs" / "operations.md").read_text()


def table(title):
    """The rows of the table whose first column is `title`, cells stripped."""
    lines = MANUAL.split(f"| {title} |")[1].splitlines()[2:]
    rows = lines[: next(number for number, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_the_table_of_metrics_is_what_a_server_shows(serve, llada_tiny):
    with serve(str(llada_tiny)) as url:
        text = httpx.get(f"{url}/metrics").text
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


def test_what_it_names_is_there():
    for path in re.findall(r"`((?:docker|configs|docs)/[\w./-]*)`", MANUAL):
        assert (ROOT / path).exists(), path
    for names in [row[0] for row in table("setting")]:
        for name in re.findall(r"`(\w+)`", names):
            assert name in options(), name


def test_its_metrics_in_passing_are_in_its_table():
    known = {name.strip("`") for name, *_ in table("metric")}
    for name in re.findall(r"unmask_\w+_total|unmask_\w+_seconds", MANUAL):
        assert name in known, name
