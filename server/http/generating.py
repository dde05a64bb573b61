"""The routes that generate or decide. Each parses, converts, submits and renders by calling the modules that do so."""

from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.guards.auth import tenant_of
from server.guards.disconnect import unless_disconnected
from server.http.dependencies import POSTS, Shared
from server.http.openapi import ANYWHERE, ERRORS, chunked, errors, named
from server.http.sse import EventStream
from server.prompts.convert import cache_salt
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
from server.protocols.names import Names
from server.protocols.response import Writer
from server.protocols.responses.output import Response as ResponsesResponse
from server.protocols.responses.output import ResponsesEvent
from server.protocols.responses.request import as_chat as responses_as_chat
from server.protocols.responses.request import from_responses
from server.protocols.responses.schema import ResponsesRequest
from server.protocols.service import Service
from server.replies.generation import GenerationRequest
from server.schemas import ChatChunk, ChatRequest, ChatResponse, CompletionRequest, CompletionResponse

_STATUSES = (400, 404, 408, 413, 415, 429)
"""Statuses of errors of these routes, besides those of all routes."""
_ANTHROPIC = errors(*ERRORS, error=AnthropicError)

router = APIRouter(responses=ANYWHERE)


@router.post(
    "/v1/completions",
    response_model=CompletionResponse,
    responses=errors(*_STATUSES) | chunked(CompletionResponse),
    **POSTS,
)
async def create_completion(body: CompletionRequest, request: Request, service: Shared) -> Response:
    """Go on with a text, or fill the holes in it."""
    service.unsupported.check(body)
    converting = from_completion(body, service, tenant_of(request.scope))
    return await _answer(converting, Names({}), request, service, is_streamed=body.stream)


@router.post(
    "/v1/fim/completions",
    response_model=FimResponse,
    responses=errors(*_STATUSES) | chunked(FimResponse),
    **POSTS,
)
async def create_fim_completion(body: FimRequest, request: Request, service: Shared) -> Response:
    """Fill in what is between a text and a suffix."""
    body = body.with_seed
    service.unsupported.check(body)
    converting = from_completion(body, service, tenant_of(request.scope), FimForm)
    return await _answer(converting, Names({}), request, service, is_streamed=body.stream)


@router.post(
    "/v1/chat/completions",
    response_model=ChatResponse,
    responses=errors(*_STATUSES) | chunked(ChatChunk),
    **POSTS,
)
async def create_chat_completion(body: ChatRequest, request: Request, service: Shared) -> Response:
    """Answer a conversation."""
    service.unsupported.check(body)
    named = (name for name in ("max_completion_tokens", "max_tokens") if getattr(body, name) is not None)
    length = next(named, "messages")  # without a requested length, the messages are what is too long
    names = Names({"prompt": "messages", "max_tokens": length})
    converting = from_chat(body, service, tenant_of(request.scope))
    return await _answer(converting, names, request, service, is_streamed=body.stream)


@router.post(
    "/v1/responses",
    response_model=ResponsesResponse,
    responses=errors(*_STATUSES) | named(ResponsesEvent),
    **POSTS,
)
async def create_response(body: ResponsesRequest, request: Request, service: Shared) -> Response:
    """Answer a conversation of items, in the form of OpenAI's newer API."""
    asked = responses_as_chat(body, service.unsupported)
    converting = from_responses(body, asked, service, tenant_of(request.scope))
    return await _answer(converting, asked.names, request, service, is_streamed=body.stream)


@router.post(
    "/v1/messages",
    response_model=MessageResponse,
    responses=_ANTHROPIC | named(MessagesEvent, AnthropicError),
    **POSTS,
)
async def create_message(body: MessagesRequest, request: Request, service: Shared) -> Response:
    """Answer a conversation, in the form of Anthropic's API."""
    asked = messages_as_chat(body, service.unsupported)
    converting = from_messages(body, asked, service, tenant_of(request.scope))
    return await _answer(converting, asked.names, request, service, is_streamed=body.stream)


@router.post("/v1/messages/count_tokens", responses=_ANTHROPIC, **POSTS)
async def count_tokens(body: ConversationRequest, request: Request, service: Shared) -> TokenCount:
    """The tokens of a conversation, in the form of Anthropic's API."""
    asked = messages_as_chat(body, service.unsupported)
    with asked.names.used():
        return await unless_disconnected(request.receive, count(asked, service))


@router.post("/v1/decisions", responses=errors(*_STATUSES), **POSTS)
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


async def _answer(
    converting: Coroutine[Any, Any, tuple[Writer, GenerationRequest]],
    names: Names,
    request: Request,
    service: Service,
    *,
    is_streamed: bool,
) -> Response:
    """The answer, whole or as events. `converting`: makes its writer, and what is asked of the engine.

    Raises ClientGone, and what the engine or `converting` raises: an InvalidRequest is in the words of `names`.
    """
    with names.used():
        writer, generation = await unless_disconnected(request.receive, converting)
        completion = await unless_disconnected(request.receive, service.submitter.start(generation))
        if is_streamed:
            return EventStream(writer.messages(completion), writer, request.scope, close=completion.abort)
        try:
            whole = await unless_disconnected(request.receive, writer.whole(completion))
        finally:
            completion.abort()
        return Response(whole, media_type="application/json")
