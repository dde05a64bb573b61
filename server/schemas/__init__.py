"""The wire types: what OpenAI's API says, what vLLM's clients add, and the `diffusion` object.

Types and ranges only, strictly read: "16" is no integer, NaN no number. What depends on the model is the engine's to
check; known fields that this server does not honour stand in `server/protocols/unsupported.py`. The string below a
field is its documentation, in the OpenAPI description and in `docs/api.md`.
"""

from server.schemas.chat import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatMessage,
    ChatRequest,
    ChatResponse,
)
from server.schemas.completions import CompletionChoice, CompletionRequest, CompletionResponse, Prompts
from server.schemas.logprobs import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob
from server.schemas.sampling import DiffusionRequest, SamplingRequest
from server.schemas.server import ErrorResponse, LoadResponse, ModelCard, ModelList, Status, VersionResponse
from server.schemas.structured import ConstrainedRequest, JsonSchemaFormat, ResponseFormat, StructuredOutputs
from server.schemas.template import Message, TemplateRequest
from server.schemas.tokens import (
    AddedToken,
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)
from server.schemas.tools import CalledFunction, CalledTool, CalledToolDelta, Function, FunctionDelta, NamedTool, Tool
from server.schemas.trace import TraceCanvas, TraceStep
from server.schemas.usage import (
    CompletionTokensDetails,
    CompletionUsage,
    ConstraintUsage,
    DiffusionUsage,
    PromptTokensDetails,
)
from server.schemas.wire import StreamOptions, WireRequest

__all__ = [
    "AddedToken",
    "CalledFunction",
    "CalledTool",
    "CalledToolDelta",
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatDelta",
    "ChatLogprob",
    "ChatLogprobs",
    "ChatMessage",
    "ChatRequest",
    "ChatResponse",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionRequest",
    "CompletionResponse",
    "CompletionTokensDetails",
    "CompletionUsage",
    "ConstrainedRequest",
    "ConstraintUsage",
    "DetokenizeRequest",
    "DetokenizeResponse",
    "DiffusionRequest",
    "DiffusionUsage",
    "ErrorResponse",
    "Function",
    "FunctionDelta",
    "JsonSchemaFormat",
    "LoadResponse",
    "Message",
    "ModelCard",
    "ModelList",
    "NamedTool",
    "PromptTokensDetails",
    "Prompts",
    "ResponseFormat",
    "SamplingRequest",
    "Status",
    "StreamOptions",
    "StructuredOutputs",
    "TemplateRequest",
    "TokenizeRequest",
    "TokenizeResponse",
    "TokenizerInfo",
    "Tool",
    "TopLogprob",
    "TraceCanvas",
    "TraceStep",
    "VersionResponse",
    "WireRequest",
]
