"""One client's connection: uvicorn's, with bounds that no ASGI app can set.

How many there are, how long a client may take to ask, how long it may leave an answer unread. What is no HTTP is
answered in OpenAI's form too.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.auth import PROBES, route_path
from server.errors import ApiError, TooManyConnections, api_error

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Of one server."""

    max_connections: int
    read_timeout: float
    """Seconds for a request's headers."""
    write_timeout: float
    """Seconds that bytes may wait for the client to take them."""


class Connection(H11Protocol):
    """HTTP/1.1 for one client. `on_refusal` hears of each request that was refused because there are too many."""

    def __init__(
        self, *arguments: Any, limits: ConnectionLimits, on_refusal: Callable[[], None], **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._limits = limits
        self._on_refusal = on_refusal
        self._asking: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` means that the client does not read
        if len(self.connections) > self._limits.max_connections:
            self.app = _Overloaded(self.app, self._on_refusal)
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._asking, self._unread):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._limits.write_timeout, self._cut_off, "does not read its answer")

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(ApiError(status=400, message="This is not a valid HTTP/1.1 request.").body).encode()
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                "x-request-id": uuid.uuid4().hex,
            }
            for event in (
                h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_headers(self) -> None:
        """Their time runs from a request's first byte, or the connection's start, until they are complete."""
        incomplete = self.conn.their_state is h11.IDLE
        if incomplete and not self._asking:
            self._asking = self.loop.call_later(self._limits.read_timeout, self._cut_off, "does not send its request")
        elif not incomplete and self._asking:
            self._asking.cancel()
            self._asking = None

    def _cut_off(self, why: str) -> None:
        """At once, with what is still to be sent; the app learns of it as of any other hang-up."""
        logger.info("a client %s: its connection is closed", why)
        self.transport.abort()


class _Overloaded:
    """What connections beyond the limit get, probes excepted."""

    def __init__(self, app: Any, on_refusal: Callable[[], None]) -> None:
        self._app: ASGIApp = app
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if route_path(scope) in PROBES:
            await self._app(scope, receive, send)
            return
        self._on_refusal()
        response = api_error(TooManyConnections(), scope).response
        response.headers["x-request-id"] = uuid.uuid4().hex
        response.headers["connection"] = "close"
        await response(scope, receive, send)
