"""Bounds the time of one request, counted from its headers.

A request whose answer has not begun by then is cancelled and answered with 504. A stream checks `deadline` itself,
because only the stream can end with an event that says so.
"""

import asyncio

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import RequestTimeout, api_error


class RequestTimeLimit:
    """Bounds each request to `seconds`; 0 means no bound."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._seconds:
            await self._app(scope, receive, send)
            return
        scope["state"]["deadline"] = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(scope["state"]["deadline"]) as bound:

                async def send_unbound(message: Message) -> None:
                    bound.reschedule(None)  # from here on, the connection's write timeout is the bound
                    await send(message)

                await self._app(scope, receive, send_unbound)
        except TimeoutError:
            if not bound.expired():
                raise
            await api_error(RequestTimeout(), scope).response(scope, receive, send)


def deadline(scope: Scope) -> float | None:
    """The time at which this request is given up, on the event loop's clock in seconds; None means never."""
    when: float | None = getattr(HTTPConnection(scope).state, "deadline", None)
    return when
