"""The wire types of POST /v1/messages and /v1/messages/count_tokens: the bodies, and the answers."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from engine import Range
from server.protocols.messages.content import InputTurn, Texts
from server.schemas import DiffusionRequest, DiffusionUsage, TraceStep, WireRequest
from server.schemas.chat import Effort, NumTokens
from server.schemas.sampling import ModelName, Stops, Temperature, TopK, TopP
from server.schemas.template import MAX_MESSAGES
from server.schemas.tools import FunctionName, OtherTool, Parameters, function_or_other
from server.schemas.wire import IfGiven, Text


class CustomTool(WireRequest):
    """A function that the model may call."""

    type: Literal["custom"] = "custom"
    name: FunctionName
    description: Text | None = None
    input_schema: Parameters
    """The JSON Schema of its arguments."""
    strict: bool | None = None
    """Whether a schema that cannot be enforced is refused; else arguments are held to what of it can be."""
    cache_control: Any = None
    """Accepted, and without effect."""


AnyTool = Annotated[
    CustomTool | OtherTool,
    PlainValidator(function_or_other(CustomTool, "custom"), json_schema_input_type=CustomTool | OtherTool),
]


class ToolChoice(WireRequest):
    """Whether tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    """As the model likes, one or more, the one with the `name`, or none, and then the model does not see `tools`."""
    name: str | None = None
    disable_parallel_tool_use: bool = False
    """Whether the answer may hold one call at most."""


def _with_name(choice: ToolChoice) -> ToolChoice:
    if (choice.type == "tool") != (choice.name is not None):
        raise PydanticCustomError("tool_choice", "needs a `name` with the type `tool`, and only with it")
    return choice


class OutputFormat(WireRequest):
    """What the answer must be."""

    type: Literal["json_schema"]
    schema_: Any = Field(alias="schema")
    """The JSON Schema. Keywords that are not enforced are refused by name."""


class OutputConfig(WireRequest):
    """The answer."""

    format: OutputFormat | None = None
    """What it must be."""
    effort: Effort | None = None
    """Handed to the chat template, as `reasoning_effort`."""


class ConversationRequest(WireRequest):
    """Body of POST /v1/messages/count_tokens."""

    model: ModelName = ""
    """One of the names that `GET /v1/models` lists; absent or empty is the first of them. An unknown one is a 404."""
    messages: Annotated[list[InputTurn], Field(min_length=1, max_length=MAX_MESSAGES)]
    """The conversation so far. A last message of the assistant is gone on with."""
    system: Texts = ""
    """A text, or a list of blocks of text: a message of the system before all others."""
    tools: list[AnyTool] = Field(default_factory=list)
    """Functions that the model may call. Tools that run elsewhere (`web_search_20250305`) are passed by, and logged."""
    tool_choice: Annotated[ToolChoice, AfterValidator(_with_name)] | None = None
    """Whether tools are called; its fields are below. Absent is `auto` with `tools`."""
    output_config: OutputConfig | None = None
    """`format` says what the answer must be, `effort` goes to the chat template."""
    output_format: OutputFormat | None = None
    """The older place of `output_config.format`."""
    thinking: Any = None
    """Accepted, and without effect."""
    thread: Any = None
    """Not supported: nothing is stored. The error's `details` have clients send whole conversations."""


class MessagesRequest(ConversationRequest):
    """Body of POST /v1/messages."""

    max_tokens: NumTokens
    """Tokens to generate at most. What the context does not hold is left out: the answer then ends with
    `model_context_window_exceeded`."""
    stop_sequences: Stops = ()
    """The answer ends before the first of these texts; at most 1024 characters in all."""
    temperature: Temperature | None = None
    """As in a chat."""
    top_p: TopP | None = None
    """As in a chat."""
    top_k: TopK = 0
    """As in a chat."""
    stream: bool = False
    """Send the answer as server-sent events, each with its name."""
    diffusion: DiffusionRequest | None = None
    """How the canvas is decoded; its fields are below."""


class TextContent(BaseModel):
    """A text of the answer."""

    type: Literal["text"] = "text"
    text: str


class ToolUseContent(BaseModel):
    """A call within an answer."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]
    """The arguments; those that are there, if the answer was cut within them."""


class ThinkingContent(BaseModel):
    """What the model thought, where its chat template has a place for it."""

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str = ""
    """Nothing is signed."""


Content = TextContent | ToolUseContent | ThinkingContent
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class MessagesUsage(BaseModel):
    """What the answer has cost. The prompt's tokens are `input_tokens` and `cache_read_input_tokens`."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    diffusion: DiffusionUsage


class MessageResponse(BaseModel):
    """An answer, or what a stream begins with."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Content]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessagesUsage
    trace: IfGiven[list[TraceStep]] = None
    """Each step; only if asked for."""
    shown: IfGiven[list[Range]] = None
    """Positions of the canvas whose tokens the answer shows. Only with `diffusion.trace`."""


class MessagesEvent(BaseModel):
    """One event of a stream, whose name is its type. Other fields are those of Anthropic's event of this type."""

    model_config = ConfigDict(extra="allow")

    type: str


class TokenCount(BaseModel):
    """The tokens of a conversation, as the model would see it."""

    input_tokens: int


class AnthropicErrorObject(BaseModel):
    """What went wrong."""

    type: str
    message: str
    """Names the field at fault."""
    details: IfGiven[dict[str, Any]] = None
    """What clients act on."""


class AnthropicError(BaseModel):
    """Anthropic's error object."""

    type: Literal["error"]
    error: AnthropicErrorObject
    request_id: str
