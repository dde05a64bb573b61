"""One replica: an engine and the whole app around it, whose answers leave as ASGI messages. Runs in a process of Ray's.

Knows nothing of other replicas. Ray Serve calls `check_health`, `record_autoscaling_stats` and `__del__`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from prometheus_client import generate_latest
from ray import serve

from engine import EngineLoop, check_settings, load
from server.http.app import create_app
from server.observe import logs
from server.observe.observability import tracer_of
from server.ray.exchange import exchange
from server.ray.relay.fleet import ReplicaState
from server.ray.scaling import Load
from server.settings.tree import Settings
from server.text.tokenizer import Tokenizer


class EngineReplica:
    """The app of `server.http`, reached through Ray in place of a socket."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        logs.set_up(settings.server)
        check_settings(settings.engine, settings.diffusion, settings.server.temperature)
        self._engine = EngineLoop(
            await asyncio.to_thread(load, settings.engine), stuck_after=settings.server.stuck_after
        )
        self._tokenizer = await asyncio.to_thread(Tokenizer.load, self._engine.info.folder)
        self._tracer = tracer_of(settings)
        self._app = create_app(self._engine, self._tokenizer, settings, self._tracer)
        self._load = Load(self._engine.info.max_batch_rows)
        self._id = serve.get_replica_context().replica_tag
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()

    async def answer(
        self, *, key: str | None, tried: tuple[str, ...], scope: dict[str, Any], body: bytes
    ) -> AsyncIterator[dict[str, Any]]:
        """The app's messages for one request. If Ray cancels it, the app hears of a client that has hung up.

        `key`, `tried`: read by `server.ray.routing.router`, before the request gets here.
        """
        async with aclosing(exchange(self._app, scope, body)) as messages:
            async for message in messages:
                yield {**message, "replica": self._id} if message["type"] == "http.response.start" else message

    async def state(self, *, with_metrics: bool) -> ReplicaState:
        """How this replica is."""
        stats = self._engine.stats
        return ReplicaState(
            replica=self._id,
            is_healthy=self._engine.healthy,
            is_accepting=self._engine.accepting,
            load=stats.running + stats.waiting,
            metrics=generate_latest(self._app.state.registry).decode() if with_metrics else "",
        )

    async def check_health(self) -> None:
        """Raises if Serve should start another replica in this one's place."""
        if not self._engine.healthy:
            raise RuntimeError("the engine has stopped or is stuck")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Read by `server.ray.scaling.desired`."""
        return self._load.read(self._engine.stats)

    async def __del__(self) -> None:
        """Called by Serve once the requests have ended that this replica had."""
        await self._lifespan.__aexit__(None, None, None)
        self._tokenizer.close()
        if self._tracer:
            self._tracer.shutdown()
