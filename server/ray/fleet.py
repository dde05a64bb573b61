"""The replicas as Ray Serve knows them: calls through its handle, and its errors in our words."""

from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from engine import EngineUnavailable, QueueFull
from server.ray.relay import ReplicaDied, ReplicaState

STATE_SECONDS = 5.0
"""Time that replicas have to tell how they are."""


class ServeFleet:
    """The replicas behind one handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._answering = handle.options(method_name="answer", stream=True)

    async def answer(
        self, key: str | None, tried: Sequence[str], scope: Mapping[str, Any], body: bytes
    ) -> AsyncIterator[MutableMapping[str, Any]]:
        """See `server.ray.relay.Fleet`."""
        response = self._answering.remote(key=key, tried=tried, scope=scope, body=body)
        try:
            async for message in response:
                yield message
        except RayActorError as error:
            raise ReplicaDied from error
        except BackPressureError as error:
            raise QueueFull("Too many requests wait for a replica; try again later.") from error
        except DeploymentUnavailableError as error:
            raise EngineUnavailable("The server takes no requests now.") from error
        finally:
            response.cancel()  # has no effect on one that has ended

    async def states(self, *, with_metrics: bool) -> Sequence[ReplicaState]:
        """See `server.ray.relay.Fleet`. One replica whose event loop hangs hides all, until Serve ends it."""
        try:
            asked = self._handle.broadcast("state", with_metrics=with_metrics)
            told = await asked.results_async(timeout_s=STATE_SECONDS, return_exceptions=True)
        except (TimeoutError, DeploymentUnavailableError):
            return ()
        return [state for state in told if isinstance(state, ReplicaState)]
