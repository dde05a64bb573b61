"""The ASGI app around one engine. The engine is a parameter, so that tests can pass a fake one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from engine import EngineLoop
from server.errors import HANDLED, api_error
from server.logs import stats_lines
from server.middleware import BodyLimit, RequestIds
from server.observe import observers
from server.openapi import Api
from server.routes import router
from server.service import Service
from server.settings import Settings
from server.text import Tokenizer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


def create_app(
    engine: EngineLoop, tokenizer: Tokenizer, settings: Settings, tracer: "TracerProvider | None" = None
) -> FastAPI:
    """Starts the engine with the app and stops it with the app; draining it first is the caller's business.

    `tracer` is told a span for each request.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        try:
            async with stats_lines(engine):
                yield
        finally:
            await engine.stop(0.0)

    app = Api(title="unmask", version=version("unmask"), lifespan=lifespan, redoc_url=None)
    watching = observers(engine, tokenizer, settings, tracer)
    app.state.service = Service.around(engine, tokenizer, settings, watching.watch)
    app.include_router(router)
    for kind in HANDLED:
        app.add_exception_handler(kind, _tell)
    app.add_middleware(BodyLimit, max_bytes=settings.server.max_body_bytes)
    app.add_middleware(RequestIds)
    watching.install(app, router.routes)  # the last middleware added is the outermost
    return app


async def _tell(request: Request, error: Exception) -> Response:
    return api_error(error, request.scope).response
