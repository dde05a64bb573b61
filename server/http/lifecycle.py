"""How the server's process ends: SIGTERM or Ctrl-C drains the engine, then closes HTTP; a second one ends it at once.

Uvicorn stops listening first and lets requests run on without bound; here new requests are answered with 503 and
running ones finish, both while the engine drains, for a bounded time. A server whose engine has died ends by itself.
"""

import asyncio
import errno
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from socket import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from engine import EngineLoop
from server.guards.connection import Connection, ConnectionLimits
from server.guards.limits import MAX_HEADER_BYTES
from server.guards.places import ACCEPTED_AT_ONCE, Places
from server.settings.tree import ServerConfig

BACKLOG = 2048
"""Connections that the kernel keeps until they are accepted."""
FLUSH_SECONDS = 5
"""For what is already generated to reach slow readers."""
COMPLAINT_SECONDS = 10.0
"""Between lines in the log that say the same of the whole process."""
GRACE_SECONDS = 2 * FLUSH_SECONDS
"""After `shutdown_timeout` the process ends within these, whatever hangs."""
FORCED = 1
"""Exit code when a second signal, or something that hangs, cuts the draining short."""
ENGINE_DIED = 70
"""Exit code when there is nothing left to serve with; sysexits.h calls it EX_SOFTWARE."""

logger = logging.getLogger(__name__)


class _SparingHandler:
    """The event loop's complaint that no file can be opened any more comes many times a second; once is enough."""

    def __init__(self) -> None:
        self._told = -inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
        elif loop.time() - self._told > COMPLAINT_SECONDS:
            self._told = loop.time()
            logger.error("no more files can be opened (%s): new connections wait", error.strerror)


class Server(uvicorn.Server):
    """Uvicorn under our signals."""

    def __init__(self, app: FastAPI, engine: EngineLoop, config: ServerConfig, announce: Callable[[], None]) -> None:
        protocol: Any = partial(
            Connection,
            limits=ConnectionLimits(read_timeout=config.read_timeout, write_timeout=config.write_timeout),
            places=Places(config.max_connections),
            on_refusal=app.state.count_refused_connection,
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                backlog=ACCEPTED_AT_ONCE,
                timeout_keep_alive=config.keep_alive_timeout,  # type: ignore[arg-type]  # the loop takes fractions too
                timeout_graceful_shutdown=FLUSH_SECONDS,
                forwarded_allow_ips=list(config.trusted_proxies),
            )
        )
        self._engine = engine
        self._drain_seconds = config.shutdown_timeout
        self._announce = announce
        self._draining: asyncio.Task[None] | None = None
        self._engine_died = False

    @property
    def exit_code(self) -> int:
        """What the process should tell its parent, once `serve` has returned."""
        if self._engine_died:
            return ENGINE_DIED
        return 0 if self.started else 1

    async def startup(self, sockets: list[socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_SparingHandler())
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(BACKLOG)  # asyncio's one number is how many wait and how many it accepts in one go
        if self.started:
            self._announce()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; True ends the server."""
        if self._engine.died and not self._engine_died:
            logger.critical("the engine has died, so the server ends; its supervisor should start it again")
            self._engine_died = True
        return await super().on_tick(counter) or self._engine_died

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        yield

    def _on_signal(self) -> None:
        if self._draining:
            self._end_at_once("second signal")
            return
        if unfinished := self._engine.stats.running + self._engine.stats.waiting:
            logger.info(
                "shutting down: unfinished requests (%d) get %g s; a second signal ends it at once",
                unfinished,
                self._drain_seconds,
            )
        else:
            logger.info("shutting down: nothing is running")
        self._draining = asyncio.create_task(self._drain())
        loop = asyncio.get_running_loop()
        loop.call_later(self._drain_seconds + GRACE_SECONDS, self._end_at_once, "the shutdown hangs")

    async def _drain(self) -> None:
        try:
            await self._engine.stop(self._drain_seconds)
        finally:
            self.should_exit = True

    def _end_at_once(self, why: str) -> None:
        logger.warning("%s: ending at once", why)
        os._exit(FORCED)
