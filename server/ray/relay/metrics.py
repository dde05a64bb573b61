"""One page of metrics from those of all replicas: the same families, each series with the label `replica`."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


class _Pages(Collector):
    def __init__(self, pages: Mapping[str, str]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, page in self._pages.items():
            for family in text_string_to_metric_families(page):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                merged.samples += [
                    sample._replace(labels={LABEL: replica, **sample.labels}) for sample in family.samples
                ]
        yield from families.values()


def merged(pages: Mapping[str, str]) -> bytes:
    """The pages, by replica, as one in the same format: Prometheus' text."""
    registry = CollectorRegistry()
    registry.register(_Pages(pages))
    return generate_latest(registry)
