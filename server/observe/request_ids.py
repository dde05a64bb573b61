"""A request's id, on the answer and on every line of the log; and the last handler of unexpected errors.

Plain ASGI, so that streams and `http.disconnect` pass through untouched.
"""

import logging
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import api_error, is_anthropic
from server.guards.auth import PROBES
from server.observe.logs import facts_of_all_lines

MAX_ID_LENGTH = 128
QUIET_PATHS = PROBES | {"/metrics"}
"""Paths that machines poll. They are logged only at debug level."""

logger = logging.getLogger(__name__)


class RequestIds:
    """Gives each request an id, sends it as `x-request-id`, and logs the request's status and time.

    Anthropic's clients read `request-id`.
    """

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
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if is_anthropic(scope):
                    headers["request-id"] = request_id
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


def _acceptable(request_id: str | None) -> str | None:
    """The client's id if it is safe to log and to send back: visible ASCII, `MAX_ID_LENGTH` characters at most."""
    if request_id and len(request_id) <= MAX_ID_LENGTH and all("!" <= letter <= "~" for letter in request_id):
        return request_id
    return None
