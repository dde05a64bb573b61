"""The deployment that Ray Serve's proxies send requests to: the guards of `server.http`, and the relay behind them.

Loads no model. Each ingress can serve any request, and several agree on where it goes.
"""

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.app import guard
from server.observe import logs
from server.page.files import PageFiles
from server.ray.fleet import ServeFleet
from server.ray.relay import Relay
from server.settings.tree import ServerConfig


@serve.ingress()
class Ingress:
    """One of the processes in front of the replicas."""

    def __init__(self, config: ServerConfig, replicas: DeploymentHandle) -> None:
        logs.set_up(config)
        self._config = config
        self._relay = Relay(ServeFleet(replicas))

    def __serve_build_asgi_app__(self) -> ASGIApp:  # noqa: PLW3201 - Serve's own name
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
    """Leaves out the header `x-request-id`, which Serve's proxy adds itself, with the same id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_without)
