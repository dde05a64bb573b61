"""What every request passes: an id and a line in the log, a last word on unexpected errors, bounds on headers and body.

Plain ASGI, so that streams and `http.disconnect` pass through untouched.
"""

import asyncio
import logging
import time
import uuid

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.auth import PROBES
from server.body import check_json
from server.errors import CLOSING, MAX_QUOTED, api_error
from server.logs import facts_of_all_lines

MAX_ID_LENGTH = 128
MAX_HEADERS = 100
MAX_HEADER_BYTES = 64 * 1024
"""Names and values of all headers, with the path and the query."""
CHECKED_AT_ONCE = 1 << 15
"""Bytes of a body that are checked in less time than a thread would take to wake."""
QUIET_PATHS = PROBES | {"/metrics"}
"""Polled by machines: logged at debug level only."""

logger = logging.getLogger(__name__)


class RequestIds:
    """Gives each request an id, answers it as `x-request-id`, and logs what became of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _acceptable(Headers(scope=scope).get("x-request-id")) or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status, begun, method = 0, time.perf_counter(), scope["method"]

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with facts_of_all_lines(client=(scope.get("client") or ("-",))[0], request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                logger.exception("request %s failed", request_id)
                if status:
                    raise
                await api_error(error, scope).response(scope, receive, send_with_id)
            finally:
                level = logging.DEBUG if scope["path"] in QUIET_PATHS else logging.INFO
                milliseconds = 1e3 * (time.perf_counter() - begun)
                path = ascii(scope["path"][:200])
                logger.log(level, "%s %s %s in %.0f ms", method, path, status, milliseconds)


class HeaderLimit:
    """Refuses a request with more headers, or longer ones, than any honest client sends, or with two lengths.

    The connection bounds them while they arrive; what arrives at once is parsed before it is measured.
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
            # Whoever stands in front may go by the other one, and take the end of this body for a request.
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
    """Hands a body on in one piece, and only if it is neither too long, nor too slow, nor costly to parse.

    Long ones are handed on one by one. What the event loop does for each, parsing above all, takes milliseconds;
    checking the next in a thread gives other requests their turn in between.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_items: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_items = max_items
        self._seconds = seconds
        self._turn = asyncio.Lock()
        """Of a long body."""

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


def _acceptable(request_id: str | None) -> str | None:
    """A client's id that is safe to log and to send back: visible ASCII, not long."""
    if request_id and len(request_id) <= MAX_ID_LENGTH and all("!" <= letter <= "~" for letter in request_id):
        return request_id
    return None
