"""Counts compilations of constraints: how long they took, how many were not needed, and what was refused."""

from prometheus_client import CollectorRegistry, Counter, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class ConstraintMetrics:
    """What `server.constraints` tells. (It is a `CompileObserver`, of which this module knows nothing.)"""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._model_name = model_name
        self._seconds = Histogram(
            "unmask_constraint_compile_seconds",
            "From a request with a new constraint to its automaton.",
            ("model_name",),
            registry=registry,
            buckets=SECONDS,
        ).labels(model_name)
        self._cached = Counter(
            "unmask_constraint_cache_hits",
            "Requests whose constraint had been compiled for an earlier one.",
            ("model_name",),
            registry=registry,
        ).labels(model_name)
        self._refused = Counter(
            "unmask_constraint_refused",
            "Requests whose constraint was refused, by reason, and by the keyword of JSON Schema if that is the cause.",
            ("model_name", "reason", "keyword"),
            registry=registry,
        )

    def on_compiled(self, seconds: float) -> None:
        self._seconds.observe(seconds)

    def on_cached(self) -> None:
        self._cached.inc()

    def on_refused(self, reason: str, keyword: str) -> None:
        self._refused.labels(self._model_name, reason, keyword).inc()
