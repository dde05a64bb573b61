"""What is asked of all replicas together: whether there is one that answers, and what all have to do."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from engine import EngineUnavailable
from server.ray.relay.fleet import Fleet, ReplicaState
from server.ray.relay.metrics import merged
from server.schemas import LoadResponse, Status


class Collective:
    """Answers for the whole fleet. `is_draining`: whether the server takes no requests any more."""

    def __init__(self, fleet: Fleet, is_draining: Callable[[], bool]) -> None:
        self._fleet = fleet
        self._is_draining = is_draining
        self._answers: Mapping[str, tuple[Collection[str], Callable[[], Awaitable[Response]]]] = {
            "/health": (("GET",), self._health),
            "/ping": (("GET", "POST"), self._health),
            "/ready": (("GET",), self._ready),
            "/load": (("GET",), self._load),
            "/metrics": (("GET",), self._metrics),
        }

    async def answer(self, scope: Scope) -> Response | None:
        """None if the request is for one replica. Raises EngineUnavailable."""
        methods, respond = self._answers.get(scope["path"], ((), None))
        return await respond() if respond and scope["method"] in methods else None

    async def _health(self) -> Response:
        if not any(state.is_healthy for state in await self._fleet.states(with_metrics=False)):
            raise EngineUnavailable("No replica is healthy.")
        return JSONResponse(Status(status="ok").model_dump())

    async def _ready(self) -> Response:
        states = await self._fleet.states(with_metrics=False)
        if self._is_draining() or not any(state.is_accepting and state.is_healthy for state in states):
            raise EngineUnavailable("The server takes no requests now.")
        return JSONResponse(Status(status="ready").model_dump())

    async def _load(self) -> Response:
        states = await self._known_states(with_metrics=False)
        return JSONResponse(LoadResponse(server_load=sum(state.load for state in states)).model_dump())

    async def _metrics(self) -> Response:
        states = await self._known_states(with_metrics=True)
        page = merged({state.replica: state.metrics for state in states})
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    async def _known_states(self, *, with_metrics: bool) -> Sequence[ReplicaState]:
        """Raises EngineUnavailable where there are none: a load of 0 would draw requests."""
        if states := await self._fleet.states(with_metrics=with_metrics):
            return states
        raise EngineUnavailable("No replica tells how it is.")
