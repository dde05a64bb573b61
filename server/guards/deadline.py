"""How long one request may take, from its headers on.

Work that has not begun to answer by then is cancelled and answered with 504; a stream looks at `deadline` itself, since
only it can end with an event that says so.
"""

import asyncio

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import RequestTimeout, api_error


class RequestTimeLimit:
    """Bounds each request to `seconds`; 0 is no bound."""

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
                    bound.reschedule(None)  # an answer that is on its way is bounded by the connection's write timeout
                    await send(message)

                await self._app(scope, receive, send_unbound)
        except TimeoutError:
            if not bound.expired():
                raise
            await api_error(RequestTimeout(), scope).response(scope, receive, send)


def deadline(scope: Scope) -> float | None:
    """When this request is given up, on the event loop's clock; None is never."""
    when: float | None = getattr(HTTPConnection(scope).state, "deadline", None)
    return when
