"""The wire types of an answer of /v1/responses: its items, its usage, and the events of a stream."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from engine import Range
from server.schemas import ChatLogprob, DiffusionUsage, TraceStep
from server.schemas.wire import IfGiven


class OutputText(BaseModel):
    """The text of a message."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[ChatLogprob] = []


Status = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(BaseModel):
    """A text of the answer."""

    type: Literal["message"] = "message"
    id: str
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(BaseModel):
    """A call within an answer."""

    type: Literal["function_call"] = "function_call"
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str
    """The JSON text of an object, unless the answer was cut within it."""


class ReasoningText(BaseModel):
    """The text of reasoning."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class OutputReasoning(BaseModel):
    """What the model thought, where its chat template has a place for it."""

    type: Literal["reasoning"] = "reasoning"
    id: str
    status: Status
    summary: list[Any] = []
    content: list[ReasoningText]


OutputItem = OutputMessage | OutputCall | OutputReasoning


class InputTokensDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Of the answer's tokens."""

    reasoning_tokens: int


class ResponsesUsage(BaseModel):
    """What the answer has cost."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int
    diffusion: DiffusionUsage


class ResponseError(BaseModel):
    """Why an answer failed."""

    code: str
    message: str


class IncompleteDetails(BaseModel):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"]


class Response(BaseModel):
    """An answer, or what there is of it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem]
    usage: ResponsesUsage | None = None
    instructions: str | None
    tools: list[dict[str, Any]]
    """The functions that the model saw."""
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    reasoning: dict[str, Any]
    max_output_tokens: int | None
    temperature: float
    """The effective one."""
    top_p: float
    top_logprobs: int
    truncation: str
    metadata: dict[str, str]
    service_tier: IfGiven[str] = None
    previous_response_id: None = None
    background: Literal[False] = False
    store: Literal[False] = False
    system_fingerprint: str
    trace: IfGiven[list[TraceStep]] = None
    """Each step; only if asked for."""
    shown: IfGiven[list[Range]] = None
    """Positions of the canvas whose tokens the answer shows. Only with `diffusion.trace`."""


class ResponsesEvent(BaseModel):
    """One event of a stream, whose name is its type. Other fields are those of OpenAI's event of this type."""

    model_config = ConfigDict(extra="allow")

    type: str
    sequence_number: int
    """Number of the event in its stream, from 0."""
