"""The page's files at `/` and `/page/NAME`, with headers that let it load and call nothing but this server.

Knows nothing of what the files do.
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

INDEX = "index.html"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": "; ".join(_POLICY),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    # Asked for again each time, so that a page never meets another version's server; a 304 is what that costs.
    "cache-control": "no-cache",
}


class PageFiles:
    """The files, read from the package once, so that no request's path ever leads to a disk."""

    def __init__(self) -> None:
        found = {file.name: _type(file.name) for file in files("server.page").iterdir()}
        self._answers = {name: _Answer(name, type_) for name, type_ in found.items() if type_}

    @property
    def routes(self) -> Sequence[Route]:
        return Route("/", self._send, methods=["GET"]), Route("/page/{name}", self._send, methods=["GET"])

    @property
    def paths(self) -> frozenset[str]:
        """The paths of all files."""
        return frozenset("/" if name == INDEX else f"/page/{name}" for name in self._answers)

    async def _send(self, request: Request) -> Response:
        name = request.path_params.get("name", INDEX)
        if name not in self._answers:
            raise HTTPException(404)
        return self._answers[name].to(request)


class _Answer:
    """One file, as it is sent."""

    def __init__(self, name: str, type_: str) -> None:
        self._body = files("server.page").joinpath(name).read_bytes()
        self._tag = f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'
        self._headers = {**HEADERS, "content-type": f"{type_}; charset=utf-8", "etag": self._tag}

    def to(self, request: Request) -> Response:
        """The file, or 304 for a browser that has it."""
        if self._tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=self._headers)
        return Response(self._body, headers=self._headers)


def _type(name: str) -> str:
    """The content type; empty for files that are none of the page's."""
    return next((type_ for suffix, type_ in _TYPES.items() if name.endswith(suffix)), "")
