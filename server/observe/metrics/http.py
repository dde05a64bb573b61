"""Counts the HTTP answers of each route by class of status, and refused requests by reason.

Paths that machines poll are left out.
"""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.observe.request_ids import QUIET_PATHS

CLASSES = ("2xx", "3xx", "4xx", "5xx")
OTHER = "other"
"""The label of paths that are no route. Clients choose those paths, so they must not become labels."""

TOO_MANY_CONNECTIONS = "too_many_connections"
REASONS: Mapping[int, str] = {
    400: "invalid",
    401: "unauthorized",
    403: "invalid",
    404: "unknown_model",
    405: "invalid",
    408: "too_slow",
    413: "too_large",
    415: "invalid",
    431: "too_large",
    503: "unavailable",
}
"""Why a request was refused, by the status from `server.errors`. The engine counts a full queue (429) itself."""


class HttpMetrics:
    """The counters behind `HttpCounting`."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._model_name = model_name
        self._rejected = dict.fromkeys([*REASONS.values(), TOO_MANY_CONNECTIONS], 0)
        self._responses = Counter(
            "unmask_http_responses",
            "HTTP answers, by route and class of status.",
            ("model_name", "handler", "code"),
            registry=registry,
        )

    def expect(self, routes: Iterable[BaseRoute]) -> None:
        """Starts the series of each route at 0. A missing series would not show that nothing has happened yet."""
        paths = {route.path for route in routes if isinstance(route, Route)} - QUIET_PATHS
        for handler in (*sorted(paths), OTHER):
            for code in CLASSES:
                self._responses.labels(self._model_name, handler, code)

    @property
    def rejected(self) -> Mapping[str, int]:
        """Requests refused so far, by reason."""
        return self._rejected

    def count(self, handler: str, status: int) -> None:
        self._responses.labels(self._model_name, handler, f"{status // 100}xx").inc()
        if status in REASONS and (status, handler) != (404, OTHER):  # 404 counts as an unknown model only on a route
            self._rejected[REASONS[status]] += 1

    def count_refused_connection(self) -> None:
        """Counts a request that was refused before it reached `HttpCounting`."""
        self._rejected[TOO_MANY_CONNECTIONS] += 1


class HttpCounting:
    """Middleware that counts answers. It is outside the routes and guards, so that it sees the final status."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["path"] not in QUIET_PATHS:
                self._metrics.count(getattr(scope.get("route"), "path", OTHER), message["status"])
            await send(message)

        await self._app(scope, receive, counting_send)
