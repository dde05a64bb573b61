"""Sends each request to one replica and its answer back, and asks another one if that dies before the answer has begun.

An answer begins with the first event of a stream, or when all of it has arrived: until then nothing has been sent, so
that the client cannot tell. A stream that has begun is never asked for again; it ends with an error event.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, MutableMapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from engine import EngineUnavailable
from server.errors import ClientGone, api_error, request_id
from server.guards.auth import tenant_of
from server.guards.disconnect import unless_disconnected
from server.guards.limits import CHECKED_AT_ONCE
from server.ray.affinity import affinity
from server.ray.endings import Ending
from server.ray.metrics import merged
from server.schemas import LoadResponse, Status

ATTEMPTS = 4
"""Replicas that a request is sent to in turn: one that kills whoever reads it must not kill them all."""
REFUSALS = frozenset({429, 503})
"""Statuses of a replica that is full or ends: another one may answer."""
HEADER = b"x-unmask-replica"
"""Of answers: the replica that wrote it."""

logger = logging.getLogger(__name__)


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


@dataclass(slots=True)
class _Answer:
    """What has come of an answer, and what of it has been sent."""

    scope: Scope
    send: Send
    start: Message | None = None
    ending: Ending | None = None
    """Of a stream of events alone."""
    held: list[Message] = field(default_factory=list)
    has_begun: bool = False
    is_over: bool = False
    """Whether all of it has been sent."""

    def starts(self, start: Message, replica: str) -> None:
        headers = [*start["headers"], (HEADER, replica.encode())]
        self.start = {**start, "headers": headers}
        kinds = [value for name, value in headers if name == b"content-type"]
        self.ending = Ending(self.scope) if any(kind.startswith(b"text/event-stream") for kind in kinds) else None

    async def goes_on(self, part: Message) -> None:
        self.held.append(part)
        if self.ending:
            self.ending.saw(part.get("body", b""))
        if (self.ending and part.get("body")) or not part.get("more_body", False):
            if not self.has_begun:
                assert self.start, "an answer has headers before it has a body"
                self.has_begun = True
                await self.send(self.start)
            held, self.held = self.held, []
            for message in held:
                await self.send(message)
            self.is_over = not part.get("more_body", False)

    async def breaks_off(self) -> None:
        """Ends a stream that has begun, unless all of it has been sent."""
        if self.is_over:
            return
        assert self.ending, "only streams begin before all of them is there"
        message = "The replica that wrote this answer has ended; what it had still to say is lost."
        told = (
            b"" if self.ending.is_complete else self.ending.failure(api_error(EngineUnavailable(message), self.scope))
        )
        await self.send({"type": "http.response.body", "body": told})


class Relay:
    """The ASGI app behind the guards of an ingress. Answers itself what is asked of all replicas together."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._unfinished = 0
        self._is_draining = False
        self._collective: Mapping[str, tuple[Collection[str], Callable[[], Awaitable[Response]]]] = {
            "/health": (("GET",), self._health),
            "/ping": (("GET", "POST"), self._health),
            "/ready": (("GET",), self._ready),
            "/load": (("GET",), self._load),
            "/metrics": (("GET",), self._metrics),
        }

    @property
    def unfinished(self) -> int:
        """Requests that are under way."""
        return self._unfinished

    def drain(self) -> None:
        """From here on new requests are answered with 503."""
        self._is_draining = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what `server.errors` answers: EngineUnavailable, QueueFull, and what `receive` raises of the body."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})  # Serve's proxy takes WebSockets; nothing here speaks them
            return
        methods, respond = self._collective.get(scope["path"], ((), None))
        if respond and scope["method"] in methods:
            response = await respond()
            await response(scope, receive, send)
            return
        if self._is_draining:
            raise EngineUnavailable("The server takes no requests now.")
        self._unfinished += 1
        try:
            message = await receive()
            if message["type"] != "http.disconnect":
                await unless_disconnected(receive, self._relayed(scope, message.get("body", b""), send))
        except ClientGone:
            logger.info("client of %s hung up", request_id(scope))
        finally:
            self._unfinished -= 1

    async def _relayed(self, scope: Scope, body: bytes, send: Send) -> None:
        tenant = tenant_of(scope)
        is_short = len(body) <= CHECKED_AT_ONCE
        key = affinity(body, tenant) if is_short else await asyncio.to_thread(affinity, body, tenant)
        tried: list[str] = []
        for attempt in range(ATTEMPTS):
            answer = _Answer(scope, send)
            try:
                refused = await self._asked(answer, key, tried, body, is_last=attempt == ATTEMPTS - 1)
            except ReplicaDied:
                logger.warning("a replica died under request %s", request_id(scope))
                if answer.has_begun:
                    await answer.breaks_off()
                    return
                continue
            if refused is None:
                return
            tried.append(refused)
        raise EngineUnavailable("Several replicas ended under this request.")

    async def _asked(
        self, answer: _Answer, key: str | None, tried: Sequence[str], body: bytes, *, is_last: bool
    ) -> str | None:
        """Sends one replica's answer on, or names the replica if it refuses and others are left."""
        async with aclosing(self._fleet.answer(key, tuple(tried), _portable(answer.scope), body)) as messages:  # type: ignore[type-var]
            async for message in messages:
                if message["type"] == "http.response.start":
                    replica = message.pop("replica")
                    if message["status"] in REFUSALS and replica not in tried and not is_last:
                        return str(replica)
                    answer.starts(message, replica)
                else:
                    await answer.goes_on(message)
        return None

    async def _health(self) -> Response:
        if not any(state.is_healthy for state in await self._fleet.states(with_metrics=False)):
            raise EngineUnavailable("No replica is healthy.")
        return JSONResponse(Status(status="ok").model_dump())

    async def _ready(self) -> Response:
        states = await self._fleet.states(with_metrics=False)
        if self._is_draining or not any(state.is_accepting and state.is_healthy for state in states):
            raise EngineUnavailable("The server takes no requests now.")
        return JSONResponse(Status(status="ready").model_dump())

    async def _load(self) -> Response:
        states = await self._known_states(with_metrics=False)
        return JSONResponse(LoadResponse(server_load=sum(state.load for state in states)).model_dump())

    async def _metrics(self) -> Response:
        states = await self._known_states(with_metrics=True)
        page = merged({state.replica: state.metrics for state in states})
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    async def _known_states(self, *, with_metrics: bool) -> Sequence[ReplicaState]:
        """Raises EngineUnavailable where there are none: a load of 0 would draw requests."""
        if states := await self._fleet.states(with_metrics=with_metrics):
            return states
        raise EngineUnavailable("No replica tells how it is.")


def _portable(scope: Scope) -> dict[str, Any]:
    """What another process can read of the scope, with the request's id as the header that it is read from."""
    names = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "client", "server")
    headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    return {
        **{name: scope[name] for name in names if name in scope},
        "root_path": "",
        "headers": [*headers, (b"x-request-id", request_id(scope).encode())],
    }
