"""The ASGI app around one engine. The engine is a parameter, so that tests can pass a fake one."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from engine import EngineLoop, resolved
from server.errors import HANDLED, api_error
from server.guards.auth import PROBES, AllowedHosts, ApiKeys
from server.guards.deadline import RequestTimeLimit
from server.guards.limits import BodyLimit, HeaderLimit
from server.guards.target import TargetNormalizer
from server.http.openapi import Api
from server.http.routes import router
from server.observe.logs import stats_lines
from server.observe.observability import make_observability
from server.observe.request_ids import RequestIds
from server.page.files import PageFiles
from server.protocols.service import Service
from server.settings.tree import ServerConfig, Settings
from server.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


def create_app(
    engine: EngineLoop, tokenizer: Tokenizer, settings: Settings, tracer: "TracerProvider | None" = None
) -> FastAPI:
    """The app, which starts the engine when it starts and stops it when it stops. The caller drains the engine first.

    `tracer`: receives a span for each request.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await tokenizer.start()
        engine.start()
        try:
            async with stats_lines(engine, observability.observers.tokens):
                yield
        finally:
            service.constraints.close()
            await engine.stop(0.0)

    settings = replace(settings, diffusion=resolved(settings.diffusion, engine.info.spec))
    config = settings.server
    app = Api(
        title="unmask",
        version=version("unmask"),
        lifespan=lifespan,
        docs_url="/docs" if config.docs else None,
        redoc_url=None,
        diffusion=settings.diffusion,
        info=engine.info,
        redirect_slashes=False,  # `TargetNormalizer` strips them; a redirect would disclose the host behind a proxy
    )
    observability = make_observability(engine, tokenizer, settings, tracer)
    service = app.state.service = Service.around(engine, tokenizer, settings, observability)
    page = PageFiles() if config.page else None
    routes = [*(page.routes if page else ()), *router.routes]
    app.router.routes.extend(routes)  # `include_router` would build every route again
    guard(app, config, page.paths if page else frozenset())
    observability.install(app, routes)  # the last middleware added is the outermost
    return app


def guard(app: Starlette, config: ServerConfig, page: Collection[str]) -> None:
    """Puts the middleware around the routes, each one outside those added before it; and has errors told to clients.

    `page`: paths without a secret.
    """
    for kind in HANDLED:
        app.add_exception_handler(kind, _tell)
    app.add_middleware(
        BodyLimit, max_bytes=config.max_body_bytes, max_items=config.max_json_items, seconds=config.read_timeout
    )
    app.add_middleware(RequestTimeLimit, seconds=config.request_timeout)
    open_paths = {*PROBES, *page} if config.metrics_need_key else {*PROBES, *page, "/metrics"}
    app.add_middleware(ApiKeys, keys=[key.get_secret_value() for key in config.api_key], open_paths=open_paths)
    app.add_middleware(HeaderLimit)
    if config.allowed_origins:  # outside `ApiKeys`: a browser's preflight carries no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("x-request-id", "retry-after"),
        )
    if config.allowed_hosts and "*" not in config.allowed_hosts:
        app.add_middleware(AllowedHosts, hosts=config.allowed_hosts)
    app.add_middleware(TargetNormalizer)
    app.add_middleware(RequestIds)


async def _tell(request: Request, error: Exception) -> Response:
    return api_error(error, request.scope).response
