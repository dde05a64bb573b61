"""Server-sent events: framing, signs of life, and errors after the headers have been sent.

Knows nothing of the messages' content.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from fastapi.sse import KEEPALIVE_COMMENT
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.errors import INTERNAL, ClientGone, RequestTimeout, api_error, request_id
from server.guards.deadline import deadline
from server.guards.disconnect import unless_disconnected
from server.protocols.response import Event, Message, Writer

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 15.0
"""A sign of life is sent after this time without a message: proxies and clients give up on silent connections."""
AHEAD = 16
"""Messages that may wait to be sent: a client that reads slowly holds up its answer, not the server's memory."""
UNBUFFERED = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Headers that tell proxies not to cache or buffer the stream (nginx reads the second)."""


class EventStream(StreamingResponse):
    """Sends each message as one event. Calls `close` once the stream has ended, in whatever way.

    `writer`: makes the messages, and says how its API writes what is none of them.
    """

    def __init__(
        self, messages: AsyncIterator[Message], writer: Writer, scope: Scope, close: Callable[[], None]
    ) -> None:
        super().__init__(_frames(messages, writer, scope), media_type="text/event-stream", headers=UNBUFFERED)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self.stream_response(send))
        except ClientGone:
            logger.info("client of %s hung up", request_id(scope))
        finally:
            self._close()


async def _frames(messages: AsyncIterator[Message], writer: Writer, scope: Scope) -> AsyncIterator[str]:
    """The events as they are sent: messages that are there at once go out together."""
    alive = KEEPALIVE_COMMENT.decode() if writer.ping is None else frame(writer.ping)
    try:
        async for some in _until(deadline(scope), messages):
            yield "".join(map(frame, some)) or alive
    except Exception as error:
        told = api_error(error, scope)
        if told.status == INTERNAL:
            logger.exception("request %s failed", request_id(scope))
        yield "".join(map(frame, writer.failure(told)))


async def _until(when: float | None, messages: AsyncIterator[Message]) -> AsyncIterator[Sequence[Message]]:
    """The messages that arrive before `when`, on the event loop's clock in seconds; then raises RequestTimeout.

    Yields all that have arrived at once, at most `AHEAD` and one. After each `SILENCE_SECONDS` without a message it
    yields none, and continues to wait for the next message.
    """
    now = asyncio.get_running_loop().time
    queue: asyncio.Queue[Message | Exception | None] = asyncio.Queue(AHEAD)
    reading = asyncio.create_task(_read(messages, queue))
    try:
        while True:
            left = SILENCE_SECONDS if when is None else min(SILENCE_SECONDS, when - now())
            arrived: list[Message | Exception | None] = []
            with suppress(TimeoutError):
                async with asyncio.timeout(max(left, 0.0)):
                    arrived.append(await queue.get())
            while not queue.empty():
                arrived.append(queue.get_nowait())
            if not arrived and when is not None and now() >= when:
                raise RequestTimeout
            some = [message for message in arrived if isinstance(message, str | Event)]
            if some or not arrived:
                yield some
            if len(some) < len(arrived):
                if error := arrived[-1]:
                    assert isinstance(error, Exception)
                    raise error
                return
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _read(messages: AsyncIterator[Message], queue: "asyncio.Queue[Message | Exception | None]") -> None:
    """Puts the messages into the queue, then None or the error that ended them. Waits while the queue is full."""
    end: Exception | None = None
    try:
        async for message in messages:
            await queue.put(message)
    except Exception as error:  # noqa: BLE001 - it is raised where the queue is read
        end = error
    await queue.put(end)


def frame(message: Message) -> str:
    """The message as it is sent."""
    if isinstance(message, Event):
        return f"event: {message.name}\ndata: {message.data}\n\n"
    return f"data: {message}\n\n"
