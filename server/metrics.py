"""Prometheus metrics, read from the engine's own statistics at each scrape; nothing is counted twice."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine import EngineLoop, FinishReason


class EngineMetrics(Collector):
    """One engine's `EngineStats` as metric families."""

    def __init__(self, engine: EngineLoop, model_name: str) -> None:
        self._engine = engine
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats
        yield self._gauge("requests_running", "Requests that hold KV pages now.", stats.running)
        yield self._gauge("requests_waiting", "Requests that wait to be admitted.", stats.waiting)
        yield self._gauge("kv_pages_used", "KV pages that requests hold now.", stats.kv_pages_used)
        yield self._gauge("kv_pages_capacity", "KV pages in the pool.", stats.kv_pages_total)
        yield self._counter("prompt_tokens", "Prompt tokens of admitted requests.", stats.prompt_tokens)
        yield self._counter("generation_tokens", "Tokens handed out.", stats.generated_tokens)
        yield self._counter("forwards", "Forwards of the model.", stats.forwards)
        yield self._counter("rows_computed", "Positions whose hidden states were computed.", stats.rows_computed)
        yield self._counter("requests_rejected", "Requests refused because the queue was full.", stats.rejected)
        finished = CounterMetricFamily(
            "unmask_requests_finished", "Requests that ended, by reason.", labels=("model_name", "reason")
        )
        for reason in FinishReason:
            finished.add_metric((self._model_name, reason.value), stats.finished.get(reason, 0))
        yield finished

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"unmask_{name}", text, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"unmask_{name}", text, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family


def registry(engine: EngineLoop, model_name: str) -> CollectorRegistry:
    """A registry of this server's own: nothing process-wide is shared between apps."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineMetrics(engine, model_name))
    return registry
