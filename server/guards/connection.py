"""One client's connection: uvicorn's protocol, with bounds that no ASGI app can set.

Bounds the number of connections, the time to send a request, and the time that an answer is left unread. Detects
clients that have hung up. Input that is not valid HTTP gets OpenAI's error object, too.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from fastapi.sse import KEEPALIVE_COMMENT
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import ApiError, TooManyConnections, api_error
from server.guards.auth import PROBES, route_path
from server.guards.places import CROWDED_SECONDS, Places
from server.guards.target import normalized_target

PROBE_SECONDS = 0.1
"""Pause before the first probe of a client that has closed its side. The pause doubles with each probe."""
MAX_PROBE_SECONDS = 15.0
"""Longest pause between probes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Timeouts of the connections of one server."""

    read_timeout: float
    """Seconds for a request's headers, and for the rest of a body whose answer has already been sent."""
    write_timeout: float
    """Seconds that bytes may wait for the client to take them."""


class Connection(H11Protocol):
    """HTTP/1.1 for one client. `on_refusal` is called for each request refused because of too many connections."""

    def __init__(
        self,
        *arguments: Any,
        limits: ConnectionLimits,
        places: Places,
        on_refusal: Callable[[], None],
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._limits = limits
        self._places = places
        self._on_refusal = on_refusal
        self._owed: str | None = None
        """What the client has yet to send, in words for the log. `_read_timer` runs while there is something."""
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._overload_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so `pause_writing` is called as soon as the client does not read
        if not self._places.take(self, self.loop.time()):
            self.app = _Overloaded(self.app, self._on_refusal)
            self._overload_timer = self.loop.call_later(CROWDED_SECONDS, self.close)
        self._update_state()

    def connection_lost(self, exc: Exception | None) -> None:
        self._places.give_back(self)
        for timer in (self._read_timer, self._write_timer, self._overload_timer, self._probe_timer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_state()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn never keeps it
        """Whether to keep the connection: a client may close its side after its request and wait for the answer.

        A client that has hung up looks the same until something is sent to it. So probes are sent.
        """
        if self._is_idle or self.conn.their_state is h11.SEND_BODY:
            return False
        self.cycle.keep_alive = False
        if not self._probe_timer:
            self._probe_timer = self.loop.call_later(PROBE_SECONDS, self._probe, 2 * PROBE_SECONDS)
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()  # starts the next request if it has already arrived
        if self._probe_timer:
            self._probe_timer.cancel()
        self._update_state()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.write_timeout, self._cut_off, "does not read its answer")
        self._update_state()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None
        self._update_state()

    def close(self) -> None:
        """Closes the connection to make room. Called only if it is idle or beyond the limit."""
        self.transport.abort()

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

    @property
    def _is_idle(self) -> bool:
        """Whether no request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    def _update_state(self) -> None:
        """Starts or stops the timer for bytes that the client owes, and tells `places` whether the connection is idle.

        The timer runs from the start of a connection, or the first byte of a request, to the end of the headers. It
        also runs for the rest of a body whose answer has already been sent. Other bodies are read by the app.
        """
        owed = None
        if self._is_idle and self.conn.their_state is h11.SEND_BODY:
            owed = "its body"
        elif self.conn.their_state is h11.IDLE and not self.timeout_keep_alive_task:
            owed = "its request"
        if owed != self._owed:
            if self._read_timer:
                self._read_timer.cancel()
            self._owed, timeout = owed, self._limits.read_timeout
            self._read_timer = self.loop.call_later(timeout, self._cut_off, f"does not send {owed}") if owed else None
        self._places.record(self, is_idle=self._is_idle and not self.flow.write_paused, now=self.loop.time())

    def _probe(self, pause: float) -> None:
        """Sends bytes without meaning. If the client has hung up, the second probe fails.

        HTTP/1.0 has no such bytes before the response starts.
        """
        if self.flow.write_paused:
            pass  # bytes that wait to be sent serve as a probe
        elif self.cycle.response_started:  # and not complete, so it is a stream of events
            self.transport.write(self.conn.send(h11.Data(data=KEEPALIVE_COMMENT)) or b"")
        elif self.scope["http_version"] == "1.1":
            going_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.transport.write(self.conn.send(going_on) or b"")
        self._probe_timer = self.loop.call_later(pause, self._probe, min(2 * pause, MAX_PROBE_SECONDS))

    def _cut_off(self, why: str) -> None:
        """Closes the connection and drops unsent bytes. The app receives `http.disconnect`, as for any hang-up."""
        logger.info("a client %s: its connection is closed", why)
        self.transport.abort()


class _Overloaded:
    """The app for connections beyond the limit: answers 503, except to probes, and closes the connection."""

    def __init__(self, app: Any, on_refusal: Callable[[], None]) -> None:
        self._app: ASGIApp = app
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        if route_path({**scope, **normalized_target(scope)}) in PROBES:
            await self._app(scope, receive, send_last)
            return
        self._on_refusal()
        response = api_error(TooManyConnections(), scope).response
        response.headers["x-request-id"] = uuid.uuid4().hex
        await response(scope, receive, send_last)
