"""Builds metric families from plain values for a collector to yield at a scrape; and buckets that several share."""

from bisect import bisect_left
from collections.abc import Mapping
from math import inf, isinf
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from engine import Distribution


class MetricFamilies:
    """Builds families whose series all carry the same labels."""

    def __init__(self, prefix: str, labels: Mapping[str, str]) -> None:
        self._prefix = prefix
        self._names = tuple(labels)
        self._values = tuple(labels.values())

    def gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(self._prefix + name, text, labels=self._names)
        family.add_metric(self._values, value)
        return family

    def gauges(self, name: str, text: str, label: str, values: Mapping[Any, float]) -> Metric:
        """A series for each value of `label`."""
        family = GaugeMetricFamily(self._prefix + name, text, labels=(*self._names, label))
        for value, reading in values.items():
            family.add_metric((*self._values, str(value)), reading)
        return family

    def info(self, name: str, text: str, facts: Mapping[str, str]) -> Metric:
        """A gauge that is always 1. The facts are its labels."""
        family = GaugeMetricFamily(self._prefix + name, text, labels=(*self._names, *facts))
        family.add_metric((*self._values, *facts.values()), 1)
        return family

    def counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(self._prefix + name, text, labels=self._names)
        family.add_metric(self._values, value)
        return family

    def counters(self, name: str, text: str, label: str, values: Mapping[Any, float]) -> Metric:
        """A series for each value of `label`."""
        family = CounterMetricFamily(self._prefix + name, text, labels=(*self._names, label))
        for value, count in values.items():
            family.add_metric((*self._values, str(value)), count)
        return family

    def histogram(self, name: str, text: str, reading: Distribution) -> Metric:
        family = HistogramMetricFamily(self._prefix + name, text, labels=self._names)
        family.add_metric(self._values, *_buckets(reading))
        return family

    def histograms(self, name: str, text: str, label: str, readings: Mapping[str, Distribution]) -> Metric:
        """A histogram for each value of `label`."""
        family = HistogramMetricFamily(self._prefix + name, text, labels=(*self._names, label))
        for value, reading in readings.items():
            family.add_metric((*self._values, value), *_buckets(reading))
        return family


def _buckets(reading: Distribution) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts at or below each bound, as in Prometheus, and the sum of the values."""
    buckets, below = [], 0
    for bound, count in zip((*reading.bounds, inf), reading.counts, strict=True):
        below += count
        buckets.append(("+Inf" if isinf(bound) else str(bound), float(below)))
    return buckets, reading.total


def token_buckets(maximum: int) -> list[float]:
    """1, 2, 5, 10, … up to the first that is at least `maximum`."""
    ends = [float(step * 10**power) for power in range(len(str(maximum)) + 1) for step in (1, 2, 5)]
    return ends[: bisect_left(ends, maximum) + 1]
