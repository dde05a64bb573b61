"""The wire types of POST /v1/responses: the body. `items` has those of its conversation, `output` the answer's."""

from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from server.protocols.responses.items import ReadItem
from server.schemas import DiffusionRequest, StreamOptions, WireRequest
from server.schemas.chat import Effort, Label, Metadata, NumAlternatives, NumTokens
from server.schemas.sampling import ModelName, Stops, Temperature, TopP
from server.schemas.structured import JsonSchemaFormat
from server.schemas.tools import FunctionName, OtherTool, Parameters, function_or_other
from server.schemas.wire import Text, check_json

MAX_ITEMS = 8192
LOGPROBS = "message.output_text.logprobs"
"""The entry of `include` that asks for log-probabilities."""


def _stored(_: Any) -> NoReturn:
    raise PydanticCustomError("stored", "nothing is stored here: send the whole conversation as `input`")


def _kept(value: bool) -> bool:
    if value:
        raise PydanticCustomError("stored", "nothing is stored here, and no answer is made later: only false is taken")
    return value


_Stored = Annotated[None, BeforeValidator(_stored)]
_Kept = Annotated[bool, AfterValidator(_kept)]


class FunctionTool(WireRequest):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: Text | None = None
    parameters: Parameters = Field(default_factory=dict)
    strict: bool | None = None
    """Whether a schema that cannot be enforced is refused; else arguments are held to what of it can be."""


AnyTool = Annotated[
    FunctionTool | OtherTool,
    PlainValidator(function_or_other(FunctionTool, "function"), json_schema_input_type=FunctionTool | OtherTool),
]


class NamedFunctionTool(WireRequest):
    """The one function that is called, once."""

    type: Literal["function"]
    name: str


class AllowedTool(WireRequest):
    """One of `tools`."""

    type: Text
    name: Text = ""


class AllowedTools(WireRequest):
    """Those of `tools` that may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"] = "auto"
    tools: list[AllowedTool]


ToolChoice = Literal["none", "auto", "required"] | NamedFunctionTool | AllowedTools


def _read_choice(value: Any) -> ToolChoice:
    match value:
        case "none" | "auto" | "required":
            return value  # type: ignore[no-any-return]
        case {"type": "function"}:
            return NamedFunctionTool.model_validate(value)
        case {"type": "allowed_tools"}:
            return AllowedTools.model_validate(value)
    form = '{"type": "function", "name": "..."}'
    raise PydanticCustomError("tool_choice", f"must be `none`, `auto`, `required`, `allowed_tools`, or {form}")


class TextFormat(JsonSchemaFormat):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema_: Any = Field(default=None, alias="schema")
    """The schema, of the type `json_schema` alone. Keywords that are not enforced are refused by name."""

    @model_validator(mode="after")
    def _has_its_schema(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise PydanticCustomError("json_schema", "needs a `schema` with the type `json_schema`, and only with it")
        return self


class TextConfig(WireRequest):
    """The answer's text."""

    format: TextFormat | None = None
    verbosity: Any = None
    """Accepted, and without effect."""


class Reasoning(WireRequest):
    """Of models that reason."""

    effort: Effort | None = None
    """Handed to the chat template, as `reasoning_effort`."""
    summary: Any = None
    """Accepted, and without effect."""
    generate_summary: Any = None
    """Accepted, and without effect."""
    context: Any = None
    """Accepted, and without effect."""


Repeated = TypeVar("Repeated")


def _repeatable(value: Repeated) -> Repeated:
    """What comes back with the answer, fields that nobody knows too."""
    if isinstance(value, BaseModel):
        check_json(value.model_dump(by_alias=True))
    return value


def _as_items(value: Any) -> Any:
    """A text is a message of the user; so is nothing at all, with which clients ask whether a model is there."""
    if isinstance(value, str) or value == []:
        return [{"type": "message", "role": "user", "content": value or ""}]
    return value


Items = Annotated[
    Annotated[list[ReadItem], Field(max_length=MAX_ITEMS)],
    BeforeValidator(_as_items, json_schema_input_type=Text | Annotated[list[ReadItem], Field(max_length=MAX_ITEMS)]),
]


class ResponsesRequest(WireRequest):
    """Body of POST /v1/responses."""

    model: ModelName = ""
    """One of the names that `GET /v1/models` lists; absent or empty is the first of them. An unknown one is a 404."""
    input: Items
    """A text, or the items of a conversation: messages, `function_call`, `function_call_output`. `reasoning` is passed
    by, and so are types that the server does not know, which it logs."""
    instructions: Text | None = None
    """A message of the system before all others."""
    tools: list[AnyTool] = Field(default_factory=list)
    """Functions that the model may call. Tools of other types are passed by, and logged."""
    tool_choice: (
        Annotated[
            ToolChoice,
            PlainValidator(_read_choice, json_schema_input_type=ToolChoice),
            AfterValidator(_repeatable),
        ]
        | None
    ) = None
    """As in a chat; or `allowed_tools`, of which the model sees no others."""
    parallel_tool_calls: bool = True
    """Whether the answer may hold more than one call."""
    text: Annotated[TextConfig, AfterValidator(_repeatable)] | None = None
    """`format` says what the answer must be, in the words of `response_format`."""
    max_output_tokens: NumTokens | None = None
    """Tokens to generate at most; they must fit the context with the prompt. Absent is the server's setting
    `default_max_tokens` or what the context still holds, whichever is less."""
    temperature: Temperature | None = None
    """As in a chat."""
    top_p: TopP | None = None
    """As in a chat."""
    stop: Stops = ()
    """As in a chat."""
    top_logprobs: NumAlternatives | None = None
    """Answer with log-probabilities, and those of this many of the most probable tokens."""
    include: list[Text] = Field(default_factory=list)
    """`message.output_text.logprobs` asks for log-probabilities, which are those of each text; other entries have no
    effect."""
    reasoning: Annotated[Reasoning, AfterValidator(_repeatable)] | None = None
    """`effort` goes to the chat template."""
    metadata: Metadata | None = None
    """Comes back with the answer."""
    service_tier: Label | None = None
    """Comes back with the answer; there is one tier."""
    truncation: Literal["auto", "disabled"] = "disabled"
    """Accepted, and without effect: a conversation that is too long is an error."""
    max_tool_calls: int | None = None
    """Accepted, and without effect: it bounds tools that OpenAI runs."""
    store: _Kept = False
    """Only false: nothing is stored."""
    background: _Kept = False
    """Only false: nothing is stored."""
    previous_response_id: _Stored = None
    """Not supported: nothing is stored."""
    conversation: _Stored = None
    """Not supported: nothing is stored."""
    prompt: _Stored = None
    """Not supported: nothing is stored."""
    stream: bool = False
    """Send the answer as server-sent events, each with its name."""
    stream_options: StreamOptions | None = None
    """Accepted, and without effect: a stream's last event has the usage."""
    diffusion: DiffusionRequest | None = None
    """How the canvas is decoded; its fields are below."""
