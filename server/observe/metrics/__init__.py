"""Prometheus: one registry for each app, with the metrics of the engine, of requests and of HTTP.

Apps in one process share only the switch below.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

from engine import EngineLoop
from server.observe.metrics.constraints import ConstraintMetrics
from server.observe.metrics.engine import EngineMetrics
from server.observe.metrics.http import HttpMetrics
from server.observe.metrics.requests import RequestMetrics
from server.observe.metrics.vllm import VllmMetrics
from server.observe.observer import Observer, TokenCounts
from server.settings.tree import Settings

# A `_created` series for each counter would double what Prometheus stores.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Metrics:
    """A registry, and what fills it."""

    registry: CollectorRegistry
    observers: Sequence[Observer]
    http: HttpMetrics
    constraints: ConstraintMetrics


def make_metrics(engine: EngineLoop, tokens: TokenCounts, settings: Settings) -> Metrics:
    registry, model_name = CollectorRegistry(auto_describe=False), settings.model_names[0]
    http = HttpMetrics(registry, model_name)
    registry.register(EngineMetrics(engine, tokens, settings, http.rejected))
    ProcessCollector(registry=registry)
    max_model_len = engine.info.max_model_len
    observers: list[Observer] = [RequestMetrics(registry, model_name, max_model_len)]
    if settings.server.metrics_compat == "vllm":
        observers.append(VllmMetrics(registry, engine, tokens, model_name))
    return Metrics(registry, observers, http, ConstraintMetrics(registry, model_name))
