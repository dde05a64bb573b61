"""One client's connection: uvicorn's, with bounds that no ASGI app can set.

How many there are, how long a client may take to ask, how long it may leave an answer unread, whether it is still
there. What is no HTTP is answered in OpenAI's form too.
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
from server.guards.target import one_form

PROBE_SECONDS = 0.1
"""To the first sign of life for a client that has closed its side; the pause doubles each time ..."""
MAX_PROBE_SECONDS = 15.0
"""... up to this."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Of one server."""

    read_timeout: float
    """Seconds for a request's headers, and for a body that nobody reads any more since its answer has gone out."""
    write_timeout: float
    """Seconds that bytes may wait for the client to take them."""


class Connection(H11Protocol):
    """HTTP/1.1 for one client. `on_refusal` hears of each request that was refused because there are too many."""

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
        """What the client has begun to send, or should, and the timer waits for."""
        self._owing: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._beyond: asyncio.TimerHandle | None = None
        self._probing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` means that the client does not read
        if not self._places.take(self, self.loop.time()):
            self.app = _Overloaded(self.app, self._on_refusal)
            self._beyond = self.loop.call_later(CROWDED_SECONDS, self.leave)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._places.give_back(self)
        for timer in (self._owing, self._unread, self._beyond, self._probing):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn never keeps it
        """Whether to keep the connection: a client that has asked and closes its side may wait for its answer.

        It may as well have hung up, which looks the same until something is sent; so something is.
        """
        if self._is_idle or self.conn.their_state is h11.SEND_BODY:
            return False
        self.cycle.keep_alive = False
        if not self._probing:
            self._probing = self.loop.call_later(PROBE_SECONDS, self._probe, 2 * PROBE_SECONDS)
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()  # begins with the next request if that is there already
        if self._probing:
            self._probing.cancel()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._limits.write_timeout, self._cut_off, "does not read its answer")
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:
            self._unread.cancel()
            self._unread = None
        self._watch()

    def leave(self) -> None:
        """To make room; only what asks nothing, or is beyond the limit anyway, is told to."""
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
        """No request is being worked on."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        """Runs a timer while the client owes bytes: from a request's first one, or the connection's start, to the last
        of its headers; and for a body whose answer has gone out before it came. The app reads other bodies.
        """
        owed = None
        if self._is_idle and self.conn.their_state is h11.SEND_BODY:
            owed = "its body"
        elif self.conn.their_state is h11.IDLE and not self.timeout_keep_alive_task:
            owed = "its request"
        if owed != self._owed:
            if self._owing:
                self._owing.cancel()
            self._owed, timeout = owed, self._limits.read_timeout
            self._owing = self.loop.call_later(timeout, self._cut_off, f"does not send {owed}") if owed else None
        self._places.mark(self, is_idle=self._is_idle and not self.flow.write_paused, now=self.loop.time())

    def _probe(self, pause: float) -> None:
        """Sends what means nothing; to one who has hung up, the second time fails. HTTP/1.0 has nothing of the kind."""
        if self.flow.write_paused:
            pass  # what waits to be taken tells as much
        elif self.cycle.response_started:  # and is not over, so it is a stream of events
            self.transport.write(self.conn.send(h11.Data(data=KEEPALIVE_COMMENT)) or b"")
        elif self.scope["http_version"] == "1.1":
            going_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.transport.write(self.conn.send(going_on) or b"")
        self._probing = self.loop.call_later(pause, self._probe, min(2 * pause, MAX_PROBE_SECONDS))

    def _cut_off(self, why: str) -> None:
        """At once, with what is still to be sent; the app learns of it as of any other hang-up."""
        logger.info("a client %s: its connection is closed", why)
        self.transport.abort()


class _Overloaded:
    """What connections beyond the limit get, probes excepted; none of them is kept open."""

    def __init__(self, app: Any, on_refusal: Callable[[], None]) -> None:
        self._app: ASGIApp = app
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        if route_path({**scope, **one_form(scope)}) in PROBES:
            await self._app(scope, receive, send_last)
            return
        self._on_refusal()
        response = api_error(TooManyConnections(), scope).response
        response.headers["x-request-id"] = uuid.uuid4().hex
        await response(scope, receive, send_last)
