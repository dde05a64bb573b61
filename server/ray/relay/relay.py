"""Sends each request to one replica and its answer back, and asks another one if that dies before the answer has begun.

A stream that has begun is never asked for again; it ends with an error event.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from starlette.types import Receive, Scope, Send

from engine import EngineUnavailable
from server.errors import ClientGone, request_id
from server.guards.auth import tenant_of
from server.guards.disconnect import unless_disconnected
from server.guards.limits import CHECKED_AT_ONCE
from server.ray.relay.answer import Answer
from server.ray.relay.collective import Collective
from server.ray.relay.fleet import Fleet, ReplicaDied
from server.ray.routing.affinity import affinity

ATTEMPTS = 4
"""Replicas that a request is sent to in turn: one that kills whoever reads it must not kill them all."""
REFUSALS = frozenset({429, 503})
"""Statuses of a replica that is full or ends: another one may answer."""

logger = logging.getLogger(__name__)


class Relay:
    """The ASGI app behind the guards of an ingress. Answers itself what is asked of all replicas together."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._unfinished = 0
        self._is_draining = False
        self._collective = Collective(fleet, lambda: self._is_draining)

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
        if response := await self._collective.answer(scope):
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
            answer = Answer(scope, send)
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
        self, answer: Answer, key: str | None, tried: Sequence[str], body: bytes, *, is_last: bool
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


def _portable(scope: Scope) -> dict[str, Any]:
    """What another process can read of the scope, with the request's id as the header that it is read from."""
    names = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "client", "server")
    headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    return {
        **{name: scope[name] for name in names if name in scope},
        "root_path": "",
        "headers": [*headers, (b"x-request-id", request_id(scope).encode())],
    }
