"""The routes of the page's files: `/` and `/page/NAME`, with headers that let it load and call nothing but this server.

Knows nothing of what the files do.
"""

import hashlib
from collections.abc import Mapping
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
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
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Asked for again each time, so that a page never meets another version's server; a 304 is what that costs.
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """One route for each file, so that no path of a request ever names one. Reads the files once, from the package."""
    folder = files("server.page")
    found = {file.name: file.read_bytes() for file in folder.iterdir() if _type(file.name)}
    return [_route("/" if name == INDEX else f"/page/{name}", name, body) for name, body in sorted(found.items())]


def _route(path: str, name: str, body: bytes) -> Route:
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**HEADERS, "content-type": _type(name), "etag": tag}

    async def send(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers)

    return Route(path, send, methods=["GET"])


def _type(name: str) -> str:
    """The content type; empty for files that are none of the page's."""
    return next((type_ for suffix, type_ in _TYPES.items() if name.endswith(suffix)), "")
