"""All routes: those that generate, and here those that count, list and report."""

from importlib.metadata import version

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from engine import EngineUnavailable
from server.errors import is_anthropic
from server.http.dependencies import POSTS, Shared
from server.http.generating import router as generating
from server.http.openapi import ANYWHERE, errors
from server.protocols.messages.models import AnthropicModel, AnthropicModels, as_model, page_of
from server.protocols.messages.schema import AnthropicError
from server.schemas import (
    AddedToken,
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

router = APIRouter(responses=ANYWHERE)
router.routes.extend(generating.routes)  # an included router is one route, which nobody can name or count


@router.post("/tokenize", responses=errors(400, 404, 408, 413, 415), **POSTS)
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


@router.post("/detokenize", responses=errors(400, 404, 408, 413, 415), **POSTS)
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


@router.get("/v1/models", responses=errors(400, error=AnthropicError))
async def list_models(request: Request, service: Shared) -> ModelList | AnthropicModels:
    """The names of the served model. With the header `anthropic-version` a page of them, in Anthropic's form."""
    cards = service.models.cards()
    return page_of(cards, request.query_params) if is_anthropic(request.scope) else ModelList(data=cards)


@router.get("/v1/models/{name:path}", responses=errors(404, error=ErrorResponse | AnthropicError))
async def show_model(name: str, request: Request, service: Shared) -> ModelCard | AnthropicModel:
    """One name of the served model, with the header `anthropic-version` in Anthropic's form."""
    card = service.models.card(name)
    return as_model(card) if is_anthropic(request.scope) else card


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
