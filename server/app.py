"""The ASGI app around one engine. The engine is a parameter, so that tests can pass a fake one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from engine import EngineLoop
from server.errors import HANDLED, api_error
from server.metrics import registry
from server.middleware import BodyLimit, RequestIds
from server.openapi import Api
from server.routes import router
from server.service import Service
from server.settings import Settings
from server.text import Tokenizer


def create_app(engine: EngineLoop, tokenizer: Tokenizer, settings: Settings) -> FastAPI:
    """Starts the engine with the app and stops it with the app; draining it first is the caller's business."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await engine.stop(0.0)

    app = Api(title="unmask", version=version("unmask"), lifespan=lifespan, redoc_url=None)
    app.state.service = Service.around(engine, tokenizer, settings)
    app.state.registry = registry(engine, settings.model_names[0])
    app.include_router(router)
    for kind in HANDLED:
        app.add_exception_handler(kind, _tell)
    app.add_middleware(BodyLimit, max_bytes=settings.server.max_body_bytes)
    app.add_middleware(RequestIds)  # the last one added is the outermost
    return app


async def _tell(request: Request, error: Exception) -> Response:
    return api_error(error, request.scope).response
