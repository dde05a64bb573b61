"""The wire types of /v1/chat/completions."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from engine import MAX_LOGPROBS
from server.schemas.logprobs import ChatLogprobs
from server.schemas.sampling import SamplingRequest
from server.schemas.template import Messages, TemplateRequest
from server.schemas.usage import CompletionUsage
from server.schemas.wire import INT64, IdsIfAsked

FinishReason = Literal["stop", "length"]


class ChatRequest(SamplingRequest, TemplateRequest):
    """Body of POST /v1/chat/completions."""

    messages: Messages
    """The conversation so far, rendered with the model's own chat template; a model without one answers 400."""
    max_completion_tokens: Annotated[int, Field(ge=1, lt=INT64)] | None = None
    """Tokens to generate at most; absent is `max_tokens`. Without either, the server's setting `default_max_tokens` or
    what the context still holds, whichever is less: a canvas is allocated whole."""
    max_tokens: Annotated[int, Field(ge=1, lt=INT64)] | None = None
    """The older name of `max_completion_tokens`, which wins."""
    logprobs: bool = False
    """Answer with each token's log-probability in the step that decoded it."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """With `logprobs`: also those of this many of the most probable tokens."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """Handed to the chat template, under this name."""

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, top: int | None, info: ValidationInfo) -> int | None:
        if top is not None and not info.data.get("logprobs"):
            raise PydanticCustomError("top_logprobs", "is only for requests with `logprobs` true")
        return top


class ChatMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    """The stop string or the one of `stop_token_ids` that ended the answer."""
    token_ids: IdsIfAsked = None
    prompt_token_ids: IdsIfAsked = None


class ChatResponse(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class ChatDelta(BaseModel):
    """What a block adds to the answer; the role comes once, before everything."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=lambda role: role is None)
    content: str


class ChatChunkChoice(BaseModel):
    """What a block adds to one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    token_ids: IdsIfAsked = None
    prompt_token_ids: IdsIfAsked = None


class ChatChunk(BaseModel):
    """One message of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: CompletionUsage | None = None
