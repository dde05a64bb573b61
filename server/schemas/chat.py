"""The wire types of /v1/chat/completions."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from engine import MAX_LOGPROBS, Range
from server.schemas.logprobs import ChatLogprobs
from server.schemas.sampling import SamplingRequest
from server.schemas.template import Messages, TemplateRequest
from server.schemas.tools import (
    AllowedTools,
    AnyToolChoice,
    CalledTool,
    CalledToolDelta,
    Tool,
    ToolChoice,
    check_choice,
)
from server.schemas.trace import TraceStep
from server.schemas.usage import CompletionUsage
from server.schemas.wire import INT64, IdsIfAsked, IfGiven, check_unicode, spelled_off

FinishReason = Literal["stop", "length", "tool_calls"]


MAX_LABELS = 16
MAX_LABEL_LENGTH = 512

_Key = Annotated[str, Field(max_length=64), AfterValidator(check_unicode)]
Label = Annotated[str, Field(max_length=MAX_LABEL_LENGTH), AfterValidator(check_unicode)]
Metadata = Annotated[dict[_Key, Label], Field(max_length=MAX_LABELS)]
NumTokens = Annotated[int, Field(ge=1, lt=INT64)]
NumAlternatives = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_Length = Annotated[
    NumTokens | None, BeforeValidator(spelled_off(-1), json_schema_input_type=NumTokens | Literal[-1] | None)
]


class ChatRequest(SamplingRequest, TemplateRequest):
    """Body of POST /v1/chat/completions."""

    messages: Messages
    """The conversation so far, rendered with the model's own chat template; a model without one answers 400."""
    max_completion_tokens: _Length = None
    """Tokens to generate at most; absent or -1 is `max_tokens`. Without either, the server's setting
    `default_max_tokens` or what the context still holds, whichever is less."""
    max_tokens: _Length = None
    """The older name of `max_completion_tokens`, which wins."""
    logprobs: Annotated[bool, BeforeValidator(spelled_off(0, as_=False), json_schema_input_type=bool | Literal[0])] = (
        False
    )
    """Answer with each token's log-probability in the step that decoded it."""
    top_logprobs: NumAlternatives | None = None
    """With `logprobs`: also those of this many of the most probable tokens."""
    tool_choice: AnyToolChoice | None = None
    """Whether tools are called: `auto` leaves it to the model, `required` is one call or more, `none` is no call, and
    then the model does not see `tools`. The name of a function calls this one, once. `allowed_tools` is `auto` or
    `required` with some of `tools`, and the model sees no others. Absent is `auto` with `tools`."""
    parallel_tool_calls: bool = True
    """Whether the answer may hold more than one call."""
    include_reasoning: bool = True
    """Whether the answer has `reasoning_content`, where the model's chat template has a place for reasoning."""
    reasoning_effort: Effort | None = None
    """Handed to the chat template, under this name; decoding is the same."""
    service_tier: Label | None = None
    """Comes back with the answer; there is one tier."""
    metadata: Metadata | None = None
    """Comes back with a whole answer; at most 16 texts of 512 characters, under names of 64."""

    @property
    def shown_tools(self) -> list[Tool]:
        """The tools that the model sees."""
        match self.tool_choice:
            case "none":
                return []
            case AllowedTools(allowed_tools=allowed):
                names = allowed.names
                return [tool for tool in self.tools if tool.function.name in names]
            case _:
                return self.tools

    @property
    def must_call(self) -> bool:
        """Whether the answer is a call at least, and no text."""
        match self.tool_choice:
            case None | "none" | "auto":
                return False
            case AllowedTools(allowed_tools=allowed):
                return allowed.mode == "required"
            case _:
                return True

    @field_validator("tool_choice")
    @classmethod
    def _of_the_tools(cls, choice: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        if "tools" in info.data:  # else they are what is wrong
            check_choice(choice, info.data["tools"])
        return choice

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, top: int | None, info: ValidationInfo) -> int | None:
        if top and not info.data.get("logprobs"):
            raise PydanticCustomError("top_logprobs", "is only for requests with `logprobs` true")
        return top


class ChatMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """null only where there are calls, and no text."""
    reasoning_content: IfGiven[str] = None
    """What the model thought before, where its chat template has a place for that."""
    refusal: None = None
    tool_calls: IfGiven[list[CalledTool]] = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    """The stop string or the one of `stop_token_ids` that ended the answer."""
    token_ids: IdsIfAsked = None
    step_map: IdsIfAsked = None
    """The step that decoded each of the tokens that `token_ids` lists, from 1; only if asked for."""
    shown: IfGiven[list[Range]] = None
    """Positions of the canvas whose tokens the text shows, each range from the first to before the second: one for each
    hole, or one. Only with `diffusion.trace`."""


class ChatResponse(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    system_fingerprint: str
    service_tier: IfGiven[str] = None
    metadata: IfGiven[dict[str, str]] = None
    prompt_token_ids: IdsIfAsked = None
    trace: IfGiven[list[TraceStep]] = None
    """Each step of each choice; only if asked for."""


class ChatDelta(BaseModel):
    """What a block adds to the answer; the role comes once, before everything."""

    role: IfGiven[Literal["assistant"]] = None
    content: IfGiven[str] = None
    """Absent only where tools may be called, of chunks without text."""
    reasoning_content: IfGiven[str] = None
    """What the block adds to the reasoning before the text."""
    tool_calls: IfGiven[list[CalledToolDelta]] = None
    """One entry: a chunk holds text, or one piece of one call."""


class ChatChunkChoice(BaseModel):
    """What a block adds to one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    token_ids: IdsIfAsked = None
    step_map: IdsIfAsked = None
    """The step that decoded each of the tokens that `token_ids` lists, from 1; only if asked for."""
    shown: IfGiven[list[Range]] = None
    """Positions of the canvas whose tokens the text shows, each range from the first to before the second: one for each
    hole, or one. Only with `diffusion.trace`, of the choice's last chunk."""


class ChatChunk(BaseModel):
    """One message of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: CompletionUsage | None = None
    system_fingerprint: str
    service_tier: IfGiven[str] = None
    prompt_token_ids: IdsIfAsked = None
    """Of the stream's first chunk only."""
    trace: IfGiven[TraceStep] = None
    """Of events named `unmask.step`, which have no choices."""
