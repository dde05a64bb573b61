"""API keys, which every path needs except those on an open list; and the hosts that requests may name.

Compares digests of all keys in constant time. The check of keys uses the path that the router will see, never the Host
header.
"""

import hashlib
import hmac
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ForeignHost, InvalidApiKey, api_error

PROBES = frozenset({"/health", "/ready", "/ping"})
"""Always open: they disclose nothing, and orchestrators have no keys."""


LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Host names that a web page cannot have as its own, whatever address its name resolves to."""


class AllowedHosts:
    """Answers 403 to requests whose Host is not in `hosts`. Probes are exempt, because they name an IP address.

    The check stops DNS rebinding: a web page whose own name resolves to the loopback has the server's origin.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = {_host_name(host) for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "lifespan" or scope["path"] in PROBES
        hosts = () if is_open else Headers(scope=scope).getlist("host")
        foreign = next((host for host in hosts if _host_name(host) not in self._hosts), None)
        if foreign is None:  # no Host header passes, too: browsers always send one
            await self._app(scope, receive, send)
        else:
            await api_error(ForeignHost(foreign), scope).response(scope, receive, send)


class ApiKeys:
    """Answers 401 to requests without a known key. If no keys are configured, all requests pass.

    A key comes as OpenAI's clients send it, `Authorization: Bearer KEY`, or as Anthropic's may, `x-api-key: KEY`. Where
    both are sent, one that is known suffices; the first counts if both are. Notes whose key it was, for `tenant_of`.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: Collection[str] = PROBES) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self._digests:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        known = self._known(_bearer(headers)) or self._known(headers.get("x-api-key"))
        if known:
            scope.setdefault("state", {})["tenant"] = known.hex()
        if known or route_path(scope) in self._open_paths:
            await self._app(scope, receive, send)
        else:
            await api_error(InvalidApiKey(), scope).response(scope, receive, send)

    def _known(self, key: str | None) -> bytes | None:
        """The digest of the key, if it is a known one."""
        digest = _digest((key or "").strip().encode("latin-1"))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all of them, without early exit
        return digest if key is not None and any(matches) else None


def _bearer(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key if scheme.lower() == "bearer" else None


def tenant_of(scope: Scope) -> str:
    """The digest of the key that a request came with, in hexadecimal; empty where no keys are configured."""
    return str(scope.get("state", {}).get("tenant", ""))


def route_path(scope: Scope) -> str:
    """The path that routes are matched with: `scope["path"]` without the prefix under which the app is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path


def _host_name(host: str) -> str:
    """The host in lower case, without the port and a trailing dot."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).lower().rstrip(".")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
