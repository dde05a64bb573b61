"""The replicas, as the relay sees them."""

from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class ReplicaDied(Exception):
    """The replica ended while it answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """One replica's answer to the question how it is."""

    replica: str
    is_healthy: bool
    is_accepting: bool
    load: int
    """Requests that run or wait."""
    metrics: str
    """In Prometheus' text format; empty unless they were asked for."""


class Fleet(Protocol):
    """The replicas."""

    def answer(
        self, key: str | None, tried: Sequence[str], scope: Mapping[str, Any], body: bytes
    ) -> AsyncIterator[MutableMapping[str, Any]]:
        """The ASGI messages of one replica's answer, the first of which names it under `replica`.

        Closing it cancels the request. Raises ReplicaDied; QueueFull where too many wait for a replica.
        """
        ...

    async def states(self, *, with_metrics: bool) -> Sequence[ReplicaState]:
        """Of all replicas that answer within seconds."""
        ...
