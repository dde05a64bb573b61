"""Server-sent events: framing, signs of life, the closing `[DONE]`, errors that come after the headers have gone out.

Knows nothing of what the messages say.
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
"""After which a comment goes out: proxies and clients give up on a connection over which nothing comes."""
UNBUFFERED = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Proxies must neither store the stream nor collect it (nginx reads the second)."""


class EventStream(StreamingResponse):
    """Sends each message as one event. `close` is called once the stream is over, however it ended."""

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
    """The messages that come before the event loop's clock shows `when`, then raises RequestTimeout.

    None after each `SILENCE_SECONDS` in which none came; the wait for the next one goes on meanwhile.
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
