"""How the server's process ends: SIGTERM or Ctrl-C drains the engine, then closes HTTP; a second one ends it at once.

Uvicorn stops listening first and lets requests run on without bound; here new requests are answered with 503 and
running ones finish, both while the engine drains, for a bounded time.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import socket

import uvicorn
from fastapi import FastAPI

from engine import EngineLoop

FLUSH_SECONDS = 5
"""For what is already generated to reach slow readers."""
MAX_HEADER_BYTES = 64 * 1024
FORCED = 1
"""Exit code when a second signal cuts the draining short."""

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Uvicorn under our signals."""

    def __init__(self, app: FastAPI, engine: EngineLoop, *, drain_seconds: float, announce: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_graceful_shutdown=FLUSH_SECONDS,
            )
        )
        self._engine = engine
        self._drain_seconds = drain_seconds
        self._announce = announce
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        yield

    def _on_signal(self) -> None:
        if self._draining:
            logger.warning("second signal: ending at once")
            os._exit(FORCED)
        logger.info("shutting down: running requests get %g s; press Ctrl-C again to end at once", self._drain_seconds)
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await self._engine.stop(self._drain_seconds)
        finally:
            self.should_exit = True
