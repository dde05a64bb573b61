"""The wire types of /v1/completions and /v1/models: what OpenAI's API says, plus the `diffusion` object.

Types and ranges only, strictly read: "16" is no integer, NaN no number. What depends on the model is the engine's to
check; known fields that this server cannot honour yet stand in `server/unsupported.py`.
"""

from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, create_model, field_validator
from pydantic_core import PydanticCustomError

from engine import DiffusionParams

MAX_PROMPTS = 128
MAX_STOPS = 4
MAX_STOP_LENGTH = 256
INT64 = 2**63

AnyPrompt = str | list[str] | list[int] | list[list[int]]
Prompts = list[str] | list[list[int]]
"""One for each choice of the answer."""


def _read_prompts(value: Any) -> Prompts:
    """By hand, since a union would report a long list of ids once per element and branch."""
    prompts = [value] if isinstance(value, str) or (value and _is_ids(value)) else value
    if not isinstance(prompts, list) or not prompts:
        message = "must be a string, a list of strings, a list of token ids, or a list of such lists"
        raise PydanticCustomError("prompt", message)
    if len(prompts) > MAX_PROMPTS:
        raise PydanticCustomError("prompt", f"must not hold more than {MAX_PROMPTS} prompts")
    if all(isinstance(prompt, str) for prompt in prompts):
        return [_check_unicode(prompt) for prompt in prompts]
    if all(_is_ids(prompt) for prompt in prompts):
        return prompts
    raise PydanticCustomError("prompt", "must hold either strings, or token ids, or lists of token ids")


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < INT64 for item in value)


def _read_stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise PydanticCustomError("stop", "must be a string or a list of strings")
    if len(stops) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise PydanticCustomError("stop", f"may hold {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters")
    return tuple(_check_unicode(stop) for stop in stops)


def _check_unicode(text: str) -> str:
    """JSON can spell lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("unicode", "must be valid Unicode") from None
    return text


class WireRequest(BaseModel):
    """A part of a request's body."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(WireRequest):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """Running usage on every chunk, where `include_usage` is set too."""


_DIFFUSION_FIELDS: dict[str, Any] = {
    name: (hint | None, None) for name, hint in get_type_hints(DiffusionParams, include_extras=True).items()
}


class DiffusionRequest(create_model("DiffusionFields", __base__=WireRequest, **_DIFFUSION_FIELDS)):  # type: ignore[misc]
    """How the canvas is decoded: the engine's own parameters; what is absent or null takes the server's default.

    Unknown fields are kept in `model_extra`, for an error that names them.
    """

    model_config = ConfigDict(extra="allow")


class CompletionRequest(WireRequest):
    """Body of POST /v1/completions. Unknown fields are kept in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(max_length=256)] | None = None
    """Absent or empty is the server's first model."""
    prompt: Annotated[Prompts, PlainValidator(_read_prompts, json_schema_input_type=AnyPrompt)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Absent or null is the server's default: 0, as LLaDA's authors decode, unless its settings say otherwise."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """0, which OpenAI permits, is greedy decoding."""
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """0 and -1 are all tokens, as in vLLM."""
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    stop: Annotated[tuple[str, ...], PlainValidator(_read_stop, json_schema_input_type=str | list[str] | None)] = ()
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=128)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    diffusion: DiffusionRequest | None = None

    @field_validator("stream_options")
    @classmethod
    def _only_for_streams(cls, options: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if options and not info.data.get("stream"):
            raise PydanticCustomError("stream_options", "is only for requests with `stream` true")
        return options


class DiffusionUsage(BaseModel):
    """What decoding has cost, beside tokens."""

    cache: str
    unmask: str
    forwards: int
    rows_computed: int
    tokens_per_forward: float


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    diffusion: DiffusionUsage


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None


class CompletionResponse(BaseModel):
    """A whole answer, or one chunk of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "unmask"
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """OpenAI's error object."""

    error: ErrorObject
