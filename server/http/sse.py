"""Server-sent events: framing, keep-alive comments, the closing `[DONE]`, errors after the headers have been sent.

Knows nothing of the messages' content.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable

from fastapi.sse import KEEPALIVE_COMMENT
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.errors import INTERNAL, ClientGone, RequestTimeout, api_error, request_id
from server.guards.deadline import deadline
from server.guards.disconnect import unless_disconnected

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 15.0
"""A comment is sent after this time without a message, because proxies and clients give up on silent connections."""
UNBUFFERED = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Headers that tell proxies not to cache or buffer the stream (nginx reads the second)."""


class EventStream(StreamingResponse):
    """Sends each message as one event. Calls `close` once the stream has ended, in whatever way."""

    def __init__(self, messages: AsyncIterator[str], scope: Scope, close: Callable[[], None]) -> None:
        super().__init__(_frames(messages, scope), media_type="text/event-stream", headers=UNBUFFERED)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self.stream_response(send))
        except ClientGone:
            logger.info("client of %s hung up", request_id(scope))
        finally:
            self._close()


async def _frames(messages: AsyncIterator[str], scope: Scope) -> AsyncIterator[str | bytes]:
    try:
        async for message in _until(deadline(scope), messages):
            yield KEEPALIVE_COMMENT if message is None else _frame(message)
    except Exception as error:
        told = api_error(error, scope)
        if told.status == INTERNAL:
            logger.exception("request %s failed", request_id(scope))
        yield _frame(json.dumps(told.body))
    yield _frame("[DONE]")


async def _until(when: float | None, messages: AsyncIterator[str]) -> AsyncIterator[str | None]:
    """The messages that arrive before `when`, on the event loop's clock in seconds; then raises RequestTimeout.

    Yields None after each `SILENCE_SECONDS` without a message, and continues to wait for the next message.
    """
    now = asyncio.get_running_loop().time
    while True:
        coming = asyncio.ensure_future(anext(messages, None))
        try:
            while not coming.done():
                left = SILENCE_SECONDS if when is None else min(SILENCE_SECONDS, when - now())
                await asyncio.wait({coming}, timeout=max(left, 0.0))
                if coming.done():
                    break
                if when is not None and now() >= when:
                    raise RequestTimeout
                yield None
        except BaseException:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            raise
        message = coming.result()
        if message is None:
            return
        yield message


def _frame(data: str) -> str:
    return f"data: {data}\n\n"
