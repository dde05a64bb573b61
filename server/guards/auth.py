"""Who gets in: with API keys every path is guarded but those on an open list; and hosts that requests may be for.

Compares digests of all keys in constant time. Keys know the path as the router will see it, never the Host header.
"""

import hashlib
import hmac
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ForeignHost, InvalidApiKey, api_error

PROBES = frozenset({"/health", "/ready", "/ping"})
"""Open always: they tell nobody anything, and orchestrators have no keys."""


LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Hosts that no web page's own name is, wherever that leads."""


class KnownHosts:
    """Answers 403 to requests for a host that is not among these, but for probes, which ask an address.

    A web page may have its own name resolve to the loopback, and is then of the same origin as the server there.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = {_host_name(host) for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "lifespan" or scope["path"] in PROBES
        hosts = () if is_open else Headers(scope=scope).getlist("host")
        foreign = next((host for host in hosts if _host_name(host) not in self._hosts), None)
        if foreign is None:  # browsers always name one
            await self._app(scope, receive, send)
        else:
            await api_error(ForeignHost(foreign), scope).response(scope, receive, send)


class ApiKeys:
    """Answers 401 to whoever brings none of the keys; without any keys, lets everybody in."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: Collection[str] = PROBES) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self._digests or self._may_pass(scope):
            await self._app(scope, receive, send)
        else:
            await api_error(InvalidApiKey(), scope).response(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        return route_path(scope) in self._open_paths or self._known(Headers(scope=scope).get("authorization", ""))

    def _known(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip().encode("latin-1"))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all of them, without early exit
        return scheme.lower() == "bearer" and any(matches)


def route_path(scope: Scope) -> str:
    """The path that routes are matched with: `scope["path"]` without the prefix under which the app is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path


def _host_name(host: str) -> str:
    """Without the port."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).lower().rstrip(".")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
