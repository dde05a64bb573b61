"""The routes. Each parses, converts, submits and renders by calling the modules that do so."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.responses import Response

from engine import EngineUnavailable, InvalidRequest
from server.guards.auth import tenant_of
from server.guards.disconnect import unless_disconnected
from server.http.openapi import events_of
from server.http.sse import EventStream
from server.prompts.convert import ENGINE_NAMES, cache_salt
from server.protocols.decisions.reply import written
from server.protocols.decisions.request import is_joint, questions_of, turns_of
from server.protocols.decisions.schema import DecisionRequest, DecisionResponse
from server.protocols.fim import FimForm, FimRequest, FimResponse
from server.protocols.generation_requests import from_chat, from_completion
from server.protocols.messages.request import as_chat as messages_as_chat
from server.protocols.messages.request import count, from_messages
from server.protocols.messages.schema import (
    AnthropicError,
    ConversationRequest,
    MessageResponse,
    MessagesEvent,
    MessagesRequest,
    TokenCount,
)
from server.protocols.response import STEP, Writer
from server.protocols.responses.request import as_chat as responses_as_chat
from server.protocols.responses.request import from_responses
from server.protocols.responses.schema import Response as ResponsesResponse
from server.protocols.responses.schema import ResponsesEvent, ResponsesRequest
from server.protocols.service import Service
from server.replies.generation import GenerationRequest
from server.schemas import (
    AddedToken,
    ChatChunk,
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    CompletionResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    ErrorResponse,
    LoadResponse,
    ModelCard,
    ModelList,
    Status,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
    VersionResponse,
)

_ERRORS = {
    400: "The request cannot be served as it is; `param` names the field at fault.",
    401: "The key is missing or wrong.",
    403: "The host is none that this server answers for.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too long.",
    415: "The content type is not application/json, or the body is compressed.",
    429: "There are no places left in the queue.",
    431: "The headers are too many or too long.",
    500: "The server failed.",
    503: "The server is starting, stopping or stuck.",
    504: "The answer took too long.",
}


def _told(*statuses: int, error: type[BaseModel] = ErrorResponse) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of errors."""
    return {status: {"model": error, "description": _ERRORS[status]} for status in statuses}


def _chunked(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of an answer that may come as chunks, which have no name."""
    told = (
        "The answer: whole, or with `stream` as events. `data: [DONE]` is the last of these, and no JSON. "
        f"An event that tells a step is called `{STEP}`; the others have no name."
    )
    return _streamed(told, events_of(chunk, ErrorResponse, name=STEP))


def _named(*events: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of an answer that may come as events with names."""
    told = "The answer: whole, or with `stream` as events. The name of each is its `type`."
    return _streamed(told, events_of(*events, name=None))


def _streamed(told: str, events: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": told, "content": {"text/event-stream": events}}}


_GENERATION = (400, 404, 408, 413, 415, 429)
"""Statuses of errors of routes that generate, besides those of all routes."""
_ANTHROPIC = _told(*_ERRORS, error=AnthropicError)

router = APIRouter(responses=_told(401, 403, 431, 500, 503, 504))


async def service_of(request: Request) -> Service:
    # Async, like all dependencies here: FastAPI would run a plain function in a thread.
    service: Service = request.app.state.service
    return service


async def require_json(request: Request) -> None:
    """Raises HTTPException 415 for other content types, which a browser may post across origins without a preflight."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "The content type must be application/json.")


Shared = Annotated[Service, Depends(service_of)]
_POSTS: dict[str, Any] = {"dependencies": [Depends(require_json)]}


@router.post(
    "/v1/completions",
    response_model=CompletionResponse,
    responses=_told(*_GENERATION) | _chunked(CompletionResponse),
    **_POSTS,
)
async def create_completion(body: CompletionRequest, request: Request, service: Shared) -> Response:
    """Go on with a text, or fill the holes in it."""
    service.unsupported.check(body)
    with _in_words(ENGINE_NAMES):
        converting = from_completion(body, service, tenant_of(request.scope))
        writer, generation = await unless_disconnected(request.receive, converting)
        return await _respond(writer, generation, request, service, is_streamed=body.stream)


@router.post(
    "/v1/fim/completions",
    response_model=FimResponse,
    responses=_told(*_GENERATION) | _chunked(FimResponse),
    **_POSTS,
)
async def create_fim_completion(body: FimRequest, request: Request, service: Shared) -> Response:
    """Fill in what is between a text and a suffix."""
    body = body.with_seed
    service.unsupported.check(body)
    with _in_words(ENGINE_NAMES):
        converting = from_completion(body, service, tenant_of(request.scope), FimForm)
        writer, generation = await unless_disconnected(request.receive, converting)
        return await _respond(writer, generation, request, service, is_streamed=body.stream)


@router.post(
    "/v1/chat/completions",
    response_model=ChatResponse,
    responses=_told(*_GENERATION) | _chunked(ChatChunk),
    **_POSTS,
)
async def create_chat_completion(body: ChatRequest, request: Request, service: Shared) -> Response:
    """Answer a conversation."""
    service.unsupported.check(body)
    named = (name for name in ("max_completion_tokens", "max_tokens") if getattr(body, name) is not None)
    length = next(named, "messages")  # without a requested length, the messages are what is too long
    with _in_words({**ENGINE_NAMES, "prompt": "messages", "max_tokens": length}):
        converting = from_chat(body, service, tenant_of(request.scope))
        writer, generation = await unless_disconnected(request.receive, converting)
        return await _respond(writer, generation, request, service, is_streamed=body.stream)


@router.post(
    "/v1/responses",
    response_model=ResponsesResponse,
    responses=_told(*_GENERATION) | _named(ResponsesEvent),
    **_POSTS,
)
async def create_response(body: ResponsesRequest, request: Request, service: Shared) -> Response:
    """Answer a conversation of items, in the form of OpenAI's newer API."""
    asked = responses_as_chat(body, service.unsupported)
    with asked.names.used():
        converting = from_responses(body, asked, service, tenant_of(request.scope))
        writer, generation = await unless_disconnected(request.receive, converting)
        return await _respond(writer, generation, request, service, is_streamed=body.stream)


@router.post(
    "/v1/messages",
    response_model=MessageResponse,
    responses=_ANTHROPIC | _named(MessagesEvent, AnthropicError),
    **_POSTS,
)
async def create_message(body: MessagesRequest, request: Request, service: Shared) -> Response:
    """Answer a conversation, in the form of Anthropic's API."""
    asked = messages_as_chat(body, service.unsupported)
    with asked.names.used():
        converting = from_messages(body, asked, service, tenant_of(request.scope))
        writer, generation = await unless_disconnected(request.receive, converting)
        return await _respond(writer, generation, request, service, is_streamed=body.stream)


@router.post("/v1/messages/count_tokens", responses=_ANTHROPIC, **_POSTS)
async def count_tokens(body: ConversationRequest, request: Request, service: Shared) -> TokenCount:
    """The tokens of a conversation, in the form of Anthropic's API."""
    asked = messages_as_chat(body, service.unsupported)
    with asked.names.used():
        return await unless_disconnected(request.receive, count(asked, service))


async def _respond(
    writer: Writer, generation: GenerationRequest, request: Request, service: Service, *, is_streamed: bool
) -> Response:
    completion = await unless_disconnected(request.receive, service.submitter.start(generation))
    if is_streamed:
        return EventStream(writer.messages(completion), writer, request.scope, close=completion.abort)
    try:
        whole = await unless_disconnected(request.receive, writer.whole(completion))
    finally:
        completion.abort()
    return Response(whole, media_type="application/json")


@router.post("/v1/decisions", responses=_told(400, 404, 408, 413, 415, 429), **_POSTS)
async def create_decision(body: DecisionRequest, request: Request, service: Shared) -> DecisionResponse:
    """Answer questions whose answers are few and known, with the probability of each: by one forward, not decoded."""
    model, joint = service.models.resolve(body.model), is_joint(body)
    service.unsupported.check(body)
    deciding = service.decider.decide(
        turns_of(body),
        questions_of(body),
        is_joint=joint,
        cache_salt=cache_salt(tenant_of(request.scope), body.cache_salt),
    )
    return written(body, model, await unless_disconnected(request.receive, deciding))


@contextmanager
def _in_words(names: Mapping[str, str]) -> Iterator[None]:
    """Renames the field in an InvalidRequest to the request's name for it."""
    try:
        yield
    except InvalidRequest as error:
        error.param = names.get(error.param or "", error.param)
        raise


@router.post("/tokenize", responses=_told(400, 404, 408, 413, 415), **_POSTS)
async def tokenize(body: TokenizeRequest, service: Shared) -> TokenizeResponse:
    """The tokens of a text, or of a conversation as the model would see it."""
    service.unsupported.check(body)
    service.models.resolve(body.model)
    if body.messages is None:
        special = body.add_special_tokens is not False
        assert body.prompt is not None
        service.prompts.check_length([body.prompt])
        [ids] = await service.tokenizer.encode([body.prompt], add_special_tokens=special)
    else:
        special = bool(body.add_special_tokens)
        prompt = await service.conversations.read(body.messages, body, add_special_tokens=special, tools=body.tools)
        ids = list(prompt.ids)
    strings = await service.tokenizer.pieces(ids) if body.return_token_strs else None
    max_model_len = service.engine.info.max_model_len
    return TokenizeResponse(count=len(ids), max_model_len=max_model_len, tokens=ids, token_strs=strings)


@router.post("/detokenize", responses=_told(400, 404, 408, 413, 415), **_POSTS)
async def detokenize(body: DetokenizeRequest, service: Shared) -> DetokenizeResponse:
    """The text of tokens, special ones included."""
    service.unsupported.check(body)
    service.models.resolve(body.model)
    service.prompts.check_ids(body.tokens, "tokens")
    return DetokenizeResponse(prompt=await service.tokenizer.decode_all(body.tokens))


@router.get("/tokenizer_info")
async def tokenizer_info(service: Shared) -> TokenizerInfo:
    """The tokenizer's special tokens and the chat template."""
    tokenizer = service.tokenizer
    roles = {f"{role}_token": tokenizer.roles.get(f"{role}_token") for role in ("bos", "eos", "pad", "unk", "mask")}
    return TokenizerInfo(
        **roles,
        tokenizer_class=tokenizer.kind,
        model_max_length=service.engine.info.max_model_len,
        chat_template=tokenizer.chat_template,
        added_tokens_decoder={
            id_: AddedToken(content=token.content, special=token.special)
            for id_, token in tokenizer.added_tokens.items()
        },
    )


@router.get("/v1/models")
async def list_models(service: Shared) -> ModelList:
    """The names of the served model."""
    return ModelList(data=service.models.cards())


@router.get("/v1/models/{name:path}", responses=_told(404))
async def show_model(name: str, service: Shared) -> ModelCard:
    """One name of the served model."""
    return service.models.card(name)


@router.get("/health")
@router.get("/ping")
@router.post("/ping")
async def health(service: Shared) -> Status:
    """Whether the engine's thread lives and moves."""
    if not service.engine.healthy:
        raise EngineUnavailable("The engine has stopped or is stuck.")
    return Status(status="ok")


@router.get("/ready")
async def ready(service: Shared) -> Status:
    """Whether new requests are taken."""
    if not (service.engine.accepting and service.engine.healthy):
        raise EngineUnavailable("The server takes no requests now.")
    return Status(status="ready")


@router.get("/version")
async def show_version() -> VersionResponse:
    """The version of the server."""
    return VersionResponse(version=version("unmask"))


@router.get("/load")
async def load(service: Shared) -> LoadResponse:
    """How many requests the engine has."""
    stats = service.engine.stats
    return LoadResponse(server_load=stats.running + stats.waiting)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
