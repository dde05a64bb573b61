"""One request put to an ASGI app without a socket: its messages, as plain data that another process can read."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.types import ASGIApp, Message

AHEAD = 16
"""Messages that may wait to be taken. Serve takes them at once, and holds what a client does not read."""


async def exchange(app: ASGIApp, scope: Mapping[str, Any], body: bytes) -> AsyncGenerator[dict[str, Any], None]:
    """What the app sends. If this is closed or cancelled, the app is cancelled, as by a client that has hung up.

    Raises what the app raises.
    """
    queue: asyncio.Queue[Message | Exception | None] = asyncio.Queue(AHEAD)
    told: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if told:
            return told.pop()
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # cancelled in the end

    async def run() -> None:
        try:
            await app({**scope, "state": {}}, receive, queue.put)
        except Exception as error:  # noqa: BLE001 - raised where the messages are read
            await queue.put(error)
        else:
            await queue.put(None)

    running = asyncio.create_task(run())
    try:
        while (message := await queue.get()) is not None:
            if isinstance(message, Exception):
                raise message
            yield {**message, "headers": list(message["headers"])} if "headers" in message else {**message}
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
