"""Shutdown of the server's process: SIGTERM or Ctrl-C drains the engine, then closes HTTP; a second one exits at once.

Uvicorn alone would stop listening first, and let requests run without a bound. Here, while the engine drains, new
requests are answered with 503 and running ones finish, for a bounded time. Then no connection is accepted any more, and
open ones are answered with 503 for `LINGER_SECONDS` before they are closed. If the engine dies, the server ends.
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
"""Connections that the kernel queues until they are accepted."""
FLUSH_SECONDS = 5
"""Time for generated text to reach slow readers."""
LINGER_SECONDS = 0.5
"""How long open connections are answered after draining. Less than the `fail_timeout` of docker/nginx, 1 s: a proxy
that has got a 503 sends nothing here before they are closed."""
COMPLAINT_SECONDS = 10.0
"""Least time between two log lines about too many open files."""
GRACE_SECONDS = 2 * FLUSH_SECONDS
"""The process ends at most this long after `shutdown_timeout`, whatever hangs."""
FORCED = 1
"""Exit code if a second signal, or a hanging shutdown, cuts the draining short."""
ENGINE_DIED = 70
"""Exit code if the engine has died; EX_SOFTWARE in sysexits.h."""

logger = logging.getLogger(__name__)


class _RateLimitedHandler:
    """Exception handler of the event loop. Logs EMFILE and ENFILE at most once in `COMPLAINT_SECONDS`."""

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
    """Uvicorn's server, with the signal handling of this module."""

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
        """The exit code of the process, once `serve` has returned."""
        if self._engine_died:
            return ENGINE_DIED
        return 0 if self.started else 1

    async def startup(self, sockets: list[socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_RateLimitedHandler())
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(BACKLOG)  # asyncio uses `backlog` also as the number to accept in one go
        if self.started:
            self._announce()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second by uvicorn. True ends the server."""
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
            await self._refuse_late_requests()
        finally:
            self.should_exit = True

    async def _refuse_late_requests(self) -> None:
        """A request that meets a closing connection is lost: its sender cannot know whether it may be sent again."""
        for server in self.servers:
            server.close()
        if self.server_state.connections:
            await asyncio.sleep(LINGER_SECONDS)

    def _end_at_once(self, why: str) -> None:
        logger.warning("%s: ending at once", why)
        os._exit(FORCED)
