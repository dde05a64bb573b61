"""Bounds on a request's headers and body.

Plain ASGI, so that streams and `http.disconnect` pass through untouched.
"""

import asyncio

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import CLOSING, MAX_QUOTED, api_error
from server.guards.body import check_json

MAX_HEADERS = 100
MAX_HEADER_BYTES = 64 * 1024
"""Total bytes of the names and values of all headers, the path and the query."""
CHECKED_AT_ONCE = 1 << 15
"""A body of up to this many bytes is checked on the event loop: that takes less time than waking a thread."""


class HeaderLimit:
    """Answers 431 to more or longer headers than an honest client sends, and 400 to a body with two lengths.

    The connection bounds headers while they arrive. Headers that arrive in one piece are parsed before that check.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        names = {name for name, _ in scope["headers"]}
        if not self._within_limits(scope):
            message = f"The request has more than {MAX_HEADERS} headers, or than {MAX_HEADER_BYTES} bytes of them."
            error = HTTPException(431, message)
        elif {b"content-length", b"transfer-encoding"} <= names:
            # Against request smuggling: a proxy may use the other header, and read the end of this body as a request.
            message = "The request has both a Content-Length and a Transfer-Encoding; it may have one of them."
            error = HTTPException(400, message, CLOSING)
        else:
            await self._app(scope, receive, send)
            return
        await api_error(error, scope).response(scope, receive, send)

    def _within_limits(self, scope: Scope) -> bool:
        size = len(scope["path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        return len(scope["headers"]) <= MAX_HEADERS and size <= MAX_HEADER_BYTES


class BodyLimit:
    """Hands a body on in one piece, unless it is too long, too slow or too costly to parse.

    Long bodies are handed on one at a time. The event loop spends milliseconds on each, mostly on parsing. While a
    thread checks the next one, the event loop can serve other requests.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_items: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_items = max_items
        self._seconds = seconds
        self._turn = asyncio.Lock()
        """Held while a long body is checked."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced, coding = headers.get("content-length", ""), headers.get("content-encoding", "identity")
        is_read = False

        async def receive_within_limits() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            if coding.strip().lower() != "identity":
                message = f"A body with the Content-Encoding {coding[:MAX_QUOTED]!a} is not read: send it plain."
                raise HTTPException(415, message, {"Accept-Encoding": "identity"})
            if announced.isdecimal() and int(announced) > self._max_bytes:
                raise self._too_large()
            try:
                async with asyncio.timeout(self._seconds):
                    body = await self._read(receive)
            except TimeoutError:
                message = f"The body did not arrive within {self._seconds:g} seconds."
                raise HTTPException(408, message, CLOSING) from None
            if body is None:
                return {"type": "http.disconnect"}
            if len(body) <= CHECKED_AT_ONCE:
                check_json(body, self._max_items)
            else:
                async with self._turn:
                    await asyncio.to_thread(check_json, body, self._max_items)
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_within_limits, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client hangs up before its end."""
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise self._too_large()
            more = message.get("more_body", False)
        return bytes(body)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"The body is longer than {self._max_bytes} bytes.")
