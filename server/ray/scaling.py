"""How many replicas there should be: Ray Serve's policy, by the two numbers that KEDA asks for (`docker/k8s/keda`).

Serve runs `desired` in its controller, which loads no model. Bounds, delays and smoothing are Serve's.
"""

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # which would bring torch along
    from engine import EngineStats

WAITING_EACH = 4.0
"""Requests that may wait at each replica."""
FULL = 0.8
"""How full forwards may be, as a share of the rows that they may have."""
WAITING, FULLNESS = "waiting", "fullness"


class Context(Protocol):
    """What Ray's `AutoscalingContext` says, as far as it counts."""

    current_num_replicas: int
    target_num_replicas: int
    aggregated_metrics: Any
    """What `Load.read` returned, by its keys and by replica: a mean over the last seconds."""


def desired(context: Context) -> tuple[float, dict[str, Any]]:
    """The larger of two counts: of replicas with `WAITING_EACH` at each, and of those with forwards that are `FULL`.

    Where no replica has told of itself yet, the count stays as it is.
    """
    told = context.aggregated_metrics or {}
    waiting, fullness = told.get(WAITING) or {}, told.get(FULLNESS) or {}
    if not (waiting and fullness):
        return context.target_num_replicas, {}
    by_rows = context.current_num_replicas * sum(fullness.values()) / len(fullness) / FULL
    return max(sum(waiting.values()) / WAITING_EACH, by_rows), {}


class Load:
    """The load of one engine between two readings."""

    def __init__(self, max_batch_rows: int) -> None:
        self._most = max_batch_rows
        self._rows = 0.0
        self._forwards = 0

    def read(self, stats: "EngineStats") -> dict[str, float]:
        """Requests that wait now, and how full the forwards since the last reading were (0 without any)."""
        seen = stats.decoding.batch_rows
        rows, forwards = seen.total - self._rows, sum(seen.counts) - self._forwards
        self._rows, self._forwards = seen.total, sum(seen.counts)
        return {WAITING: float(stats.waiting), FULLNESS: rows / (forwards * self._most) if forwards else 0.0}
