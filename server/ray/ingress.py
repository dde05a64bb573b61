"""The deployment that Ray Serve's proxies send requests to: the guards of `server.http`, and the relay behind them.

Loads no model. Each ingress can serve any request, and several agree on where it goes.
"""

from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine import EngineUnavailable, QueueFull
from server.http.app import guard
from server.observe import logs
from server.page.files import PageFiles
from server.ray.relay.fleet import ReplicaDied, ReplicaState
from server.ray.relay.relay import Relay
from server.settings.tree import ServerConfig

GONE = (RayActorError, OutOfMemoryError, ObjectLostError, NodeDiedError, WorkerCrashedError)
"""What Ray says of calls to a replica that has ended: by itself, by Ray's watch over memory, or with its node."""
STATE_SECONDS = 5.0
"""Time that replicas have to tell how they are."""


@serve.ingress()
class Ingress:
    """One of the processes in front of the replicas."""

    def __init__(self, config: ServerConfig, replicas: DeploymentHandle) -> None:
        logs.set_up(config)
        self._config = config
        self._relay = Relay(_ServeFleet(replicas))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = Starlette()
        app.router.default = self._relay
        guard(app, self._config, PageFiles().paths if self._config.page else frozenset())
        return _WithoutId(app)

    async def drain(self) -> None:
        """From here on new requests are answered with 503."""
        self._relay.drain()

    async def unfinished(self) -> int:
        """Requests that are under way."""
        return self._relay.unfinished


class _WithoutId:
    """Leaves out the header `x-request-id`, which Serve's proxy adds: with the same id, unless the client's is none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_without)


class _ServeFleet:
    """The replicas behind one handle of Serve's, whose errors it says in our words."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._answering = handle.options(method_name="answer", stream=True)

    async def answer(
        self, key: str | None, tried: Sequence[str], scope: Mapping[str, Any], body: bytes
    ) -> AsyncIterator[MutableMapping[str, Any]]:
        """See `server.ray.relay.fleet.Fleet`."""
        response = self._answering.remote(key=key, tried=tried, scope=scope, body=body)
        try:
            async for message in response:
                yield message
        except GONE as error:
            raise ReplicaDied from error
        except BackPressureError as error:
            raise QueueFull("Too many requests wait for a replica; try again later.") from error
        except DeploymentUnavailableError as error:
            raise EngineUnavailable("The server takes no requests now.") from error
        finally:
            response.cancel()  # has no effect on one that has ended

    async def states(self, *, with_metrics: bool) -> Sequence[ReplicaState]:
        """See `server.ray.relay.fleet.Fleet`. One replica whose event loop hangs hides all, until Serve ends it."""
        try:
            asked = self._handle.broadcast("state", with_metrics=with_metrics)
            told = await asked.results_async(timeout_s=STATE_SECONDS, return_exceptions=True)
        except (TimeoutError, DeploymentUnavailableError):
            return ()
        return [state for state in told if isinstance(state, ReplicaState)]
