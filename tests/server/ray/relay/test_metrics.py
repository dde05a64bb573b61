"""The metrics of all replicas on one page."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.ray.relay.metrics import LABEL, merged


def page(value):
    registry = CollectorRegistry()
    Gauge("unmask_waiting", "Waiting, or \\ not.", ["model_name"], registry=registry).labels('a "b"').set(value)
    Counter("unmask_tokens", "Tokens.", registry=registry).inc(value)
    Histogram("unmask_seconds", "Time.", buckets=(1, 5), registry=registry).observe(value)
    return generate_latest(registry).decode()


def series(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_each_series_is_there_once_for_each_replica():
    pages = {"r1": page(2), "r2": page(7)}
    expected = {
        (name, *sorted([*labels, (LABEL, replica)])): value
        for replica, text in pages.items()
        for (name, *labels), value in series(text).items()
    }
    found = merged(pages).decode()
    assert series(found) == expected
    assert found.count("# TYPE unmask_tokens_total counter") == 1
    assert [line for line in page(2).splitlines() if line.startswith("#")] == [
        line for line in found.splitlines() if line.startswith("#")
    ]


def test_no_replica_is_an_empty_page():
    assert merged({}) == b""
