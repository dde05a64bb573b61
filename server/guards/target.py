"""Normalizes a request's target and method for routes, keys and counters.

`/v1/models/` becomes `/v1/models`, HEAD becomes GET with the answer's body dropped, and a proxy's
`GET http://host/health` becomes `GET /health`.
"""

from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class TargetNormalizer:
    """Middleware that changes the scope in place. It must be outside everything that routes by path or method.

    Middleware further out sees the changed scope once the inner app has run.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.update(normalized_target(scope))
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        scope["method"] = "GET"

        async def send_head(message: Message) -> None:
            await send(message if message["type"] == "http.response.start" else {**message, "body": b""})

        await self._app(scope, receive, send_head)


def normalized_target(scope: Scope) -> dict[str, Any]:
    """The normalized fields of the scope: the path; and `raw_path` and the headers, if the target names a host."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    changed: dict[str, Any] = {}
    scheme, _, rest = raw.partition(b"://")
    if rest and scheme.lower() in (b"http", b"https"):
        host, slash, below = rest.partition(b"/")
        headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
        raw = slash + below or b"/"
        changed = {"raw_path": raw, "path": unquote(raw.decode("ascii")), "headers": [(b"host", host), *headers]}
    path = str(changed.get("path", scope["path"]))
    return {**changed, "path": path.rstrip("/") or "/"}
