"""The routes: parse, convert, submit, render. What each step means is told where it is done."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from engine import EngineUnavailable
from server.convert import Answer, diffusion_params, sampling_params
from server.disconnect import unless_disconnected
from server.schemas import (
    CompletionRequest,
    CompletionResponse,
    ErrorResponse,
    ModelCard,
    ModelList,
    StreamOptions,
)
from server.service import Service
from server.sse import EventStream

router = APIRouter(responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}})


async def service_of(request: Request) -> Service:
    # Async, as all dependencies here: a plain function would cost a hop to a thread and back.
    service: Service = request.app.state.service
    return service


async def require_json(request: Request) -> None:
    """Browsers may post other types across origins without asking first; JSON they may not."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "The content type must be application/json.")


Shared = Annotated[Service, Depends(service_of)]


@router.post("/v1/completions", dependencies=[Depends(require_json)], response_model=CompletionResponse)
async def create_completion(body: CompletionRequest, request: Request, service: Shared) -> Response:
    service.unsupported.check(body.model_extra or {})
    answer = Answer(
        model=service.models.resolve(body.model), diffusion=diffusion_params(body.diffusion, service.diffusion)
    )
    prompts = await service.encode(body.prompt)
    sampling = sampling_params(body, service.temperature)
    completion = service.generate(answer.id, prompts, body.stop, sampling, answer.diffusion)
    if body.stream:
        chunks = answer.chunks(completion, body.stream_options or StreamOptions())
        return EventStream(chunks, request.scope, close=completion.abort)
    try:
        whole = await unless_disconnected(request.receive, answer.whole(completion))
    finally:
        completion.abort()
    return Response(whole, media_type="application/json")


@router.get("/v1/models")
async def list_models(service: Shared) -> ModelList:
    return ModelList(data=service.models.cards())


@router.get("/v1/models/{name:path}")
async def show_model(name: str, service: Shared) -> ModelCard:
    return service.models.card(name)


@router.get("/health")
async def health(service: Shared) -> dict[str, str]:
    """Whether the engine's thread lives and moves."""
    if not service.engine.healthy:
        raise EngineUnavailable("The engine has stopped or is stuck.")
    return {"status": "ok"}


@router.get("/ready")
async def ready(service: Shared) -> dict[str, str]:
    """Whether new requests are taken."""
    if not (service.engine.accepting and service.engine.healthy):
        raise EngineUnavailable("The server takes no requests now.")
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
