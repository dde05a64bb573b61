"""The wire types of /v1/decisions, as OpenAI's SDK has them, and the `diffusion` object."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainValidator, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from server.decisions.labels import MOST_LEVELS, MOST_OPTIONS
from server.schemas import WireRequest
from server.schemas.sampling import MAX_SALT_LENGTH
from server.schemas.template import MAX_MESSAGES
from server.schemas.wire import Text, check_unicode

MAX_QUESTIONS = 400
MAX_NAME_LENGTH = 256

Name = Annotated[str, Field(max_length=MAX_NAME_LENGTH), AfterValidator(check_unicode)]
_Given = Annotated[str, Field(min_length=1), AfterValidator(check_unicode)]


class DecisionTextPart(WireRequest):
    """A piece of text."""

    type: Literal["input_text"]
    text: Text


class DecisionJsonPart(WireRequest):
    """An object, or a list of objects, which the model reads as JSON text."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]


class DecisionOutputTextPart(WireRequest):
    """A piece of what the assistant said."""

    type: Literal["output_text"]
    text: Text


class DecisionRefusalPart(WireRequest):
    """The assistant's words where it refused."""

    type: Literal["refusal"]
    refusal: Text


AnyPart = DecisionTextPart | DecisionJsonPart | DecisionOutputTextPart | DecisionRefusalPart


def _read_text(value: Any) -> str:
    """Parts by hand, for an error that says what is wrong with one; they are joined by line breaks."""
    if isinstance(value, str):
        return check_unicode(value)
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("content", "must be a string or a list of parts")
    return "\n".join(map(_read_part, value))


def _read_part(part: Any) -> str:
    match part:
        case {"type": "input_text" | "output_text", "text": str(text)} | {"type": "refusal", "refusal": str(text)}:
            return check_unicode(text)
        case {"type": "input_json", "data": dict(data) | list(data)} if _is_of_objects(data):
            return check_unicode(json.dumps(data, ensure_ascii=False))
        case {"type": "input_image"}:
            raise PydanticCustomError("content", "may hold no images: the model reads text alone")
    raise PydanticCustomError(
        "content",
        'must hold parts such as {"type": "input_text", "text": "..."} or {"type": "input_json", "data": {...}}',
    )


def _is_of_objects(data: Any) -> bool:
    return isinstance(data, dict) or all(isinstance(one, dict) for one in data)


_Parts = Annotated[list[AnyPart], Field(min_length=1)]
Content = Annotated[str, PlainValidator(_read_text, json_schema_input_type=str | _Parts)]


class DecisionItem(WireRequest):
    """A message, or a tool's call or its output."""

    type: Literal["message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"] = (
        "message"
    )
    role: Annotated[Literal["user", "developer", "system", "assistant"] | None, Field(validate_default=True)] = None
    """Of a message."""
    content: Annotated[Content | None, Field(validate_default=True)] = None
    """Of a message."""
    call_id: Annotated[Name | None, Field(validate_default=True)] = None
    """Of a call and its output, which must come after the call."""
    name: Annotated[Name | None, Field(validate_default=True)] = None
    """Of a call: what is called."""
    arguments: Annotated[Text | None, Field(validate_default=True)] = None
    """Of a function's call: the JSON text of an object."""
    input: Annotated[Text | None, Field(validate_default=True)] = None
    """Of a custom tool's call."""
    output: Annotated[Content | None, Field(validate_default=True)] = None
    """Of an output."""

    @field_validator("role", "content", "call_id", "name", "arguments", "input", "output")
    @classmethod
    def _is_there(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("type", "")
        if value is None and info.field_name in _NEEDED.get(kind, ()):
            raise PydanticCustomError("item", "must be there in an item of type `{kind}`", {"kind": kind})
        return value


_NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id", "output"),
}


def _as_items(value: Any) -> Any:
    """A text is one message of the user."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _check_calls(items: list[DecisionItem]) -> list[DecisionItem]:
    """Each output belongs to a call before it."""
    called: set[str] = set()
    for number, item in enumerate(items):
        if item.call_id and item.type.endswith("_call"):
            called.add(item.call_id)
        elif item.call_id and item.call_id not in called:
            raise PydanticCustomError(
                "call_id", "item {number} is the output of a call that is not before it", {"number": number}
            )
    return items


_ItemList = Annotated[list[DecisionItem], Field(min_length=1, max_length=MAX_MESSAGES)]
Items = Annotated[
    _ItemList, AfterValidator(_check_calls), BeforeValidator(_as_items, json_schema_input_type=str | _ItemList)
]


def _read_value(value: Any) -> str | bool:
    if isinstance(value, bool) or (isinstance(value, str) and value):
        return check_unicode(value) if isinstance(value, str) else value
    raise PydanticCustomError("value", "must be a text that is not empty, or a boolean")


class ChoiceOption(WireRequest):
    """One of the options of a choice."""

    value: Annotated[str | bool, PlainValidator(_read_value, json_schema_input_type=_Given | bool)]
    """A text or a boolean; `true` and `"true"` are two options."""
    description: Text = ""
    """When it applies, for the model."""


class ScoreLevel(WireRequest):
    """One of the levels of a score."""

    label: _Given
    description: Text = ""
    """What tells it from its neighbours, for the model."""


def _read_instructions(value: Any) -> str:
    text = _read_text(value)
    if not text.strip():
        raise PydanticCustomError("instructions", "must say what is asked")
    return text


class DecisionQuestion(WireRequest):
    """A question about the input."""

    type: Literal["predicate", "choice", "score"]
    """How likely a statement is true; which of some options applies; which of some ordered levels."""
    instructions: Annotated[str, PlainValidator(_read_instructions, json_schema_input_type=str | _Parts)]
    """The statement or question, as text or as parts of text and JSON."""
    name: Name | None = None
    """Comes back with the answer."""
    choices: Annotated[
        list[ChoiceOption] | None, Field(min_length=2, max_length=MOST_OPTIONS, validate_default=True)
    ] = None
    """Of a choice: its options, each once."""
    levels: Annotated[list[ScoreLevel] | None, Field(min_length=2, max_length=MOST_LEVELS, validate_default=True)] = (
        None
    )
    """Of a score: its levels, from the lowest to the highest."""

    @field_validator("choices", "levels")
    @classmethod
    def _of_this_type(cls, value: Any, info: ValidationInfo) -> Any:
        kind, of = info.data.get("type"), "choice" if info.field_name == "choices" else "score"
        if kind == of and value is None:
            raise PydanticCustomError("question", "must be there in a question of type `{of}`", {"of": of})
        if kind not in (of, None) and value is not None:
            raise PydanticCustomError("question", "is only for questions of type `{of}`", {"of": of})
        return value

    @field_validator("choices")
    @classmethod
    def _each_once(cls, choices: list[ChoiceOption] | None) -> list[ChoiceOption] | None:
        values = [(type(option.value), option.value) for option in choices or ()]
        if len(set(values)) < len(values):
            raise PydanticCustomError("choices", "must hold each value once")
        return choices


class DecisionDiffusion(WireRequest):
    """How the questions are put to the model."""

    joint: bool = False
    """All questions on one canvas, where one forward answers them together: cheaper where the input is long, but each
    answer may depend on the other questions. Not for block-causal models."""


class DecisionRequest(WireRequest):
    """Body of POST /v1/decisions."""

    model: Annotated[str, Field(max_length=256)] = ""
    """One of the names that `GET /v1/models` lists; absent or empty is the first of them. An unknown one is a 404."""
    input: Items
    """What the questions are about: a text, or messages, calls of tools and their outputs."""
    questions: Annotated[list[DecisionQuestion], Field(min_length=1, max_length=MAX_QUESTIONS, fail_fast=True)]
    """Questions, which are answered in order."""
    cache_salt: Annotated[str, Field(max_length=MAX_SALT_LENGTH), AfterValidator(check_unicode)] = ""
    """Keys and values of the input are shared only with requests of the same salt, and of the same API key."""
    diffusion: DecisionDiffusion | None = None
    """How the questions are put to the model."""


class PredicateAnswer(BaseModel):
    """How likely the statement is true."""

    type: Literal["predicate"] = "predicate"
    name: str | None
    probability: float


class ChoiceProbability(BaseModel):
    """One option."""

    value: str | bool
    probability: float


class ChoiceAnswer(BaseModel):
    """The option that is most probable; of equals the first."""

    type: Literal["choice"] = "choice"
    name: str | None
    choice: str | bool
    confidence: float
    """How far the probabilities are from even, from 0 to 1: 1 - entropy / log(options)."""
    probabilities: list[ChoiceProbability]
    """Of all options, in order; they add up to 1."""


class ScoreProbability(BaseModel):
    """One level."""

    value: int
    """Its number, from 0."""
    label: str
    probability: float


class ScoreAnswer(BaseModel):
    """The level that is expected."""

    type: Literal["score"] = "score"
    name: str | None
    score: float
    """The mean of the levels' numbers, each as often as it is probable."""
    confidence: float
    """How far the probabilities are from even, from 0 to 1: 1 - entropy / log(levels)."""
    probabilities: list[ScoreProbability]
    """Of all levels, in order; they add up to 1."""


class DecisionTokensDetails(BaseModel):
    """Of the input's tokens."""

    cached_tokens: int
    """Those whose keys and values were there, from other questions or earlier requests; block-causal models alone can
    share them."""
    cache_write_tokens: int = 0


class DecisionOutputDetails(BaseModel):
    """Of the output's tokens: there are none."""

    reasoning_tokens: int = 0


class DecisionCost(BaseModel):
    """What the model computed."""

    forwards: int
    """Steps that the questions took part in, summed."""
    rows_computed: int
    """Positions whose hidden states were computed."""


class DecisionUsage(BaseModel):
    """Tokens of all canvases: the input is counted for each question that is asked on its own."""

    input_tokens: int
    input_tokens_details: DecisionTokensDetails
    output_tokens: int = 0
    """Nothing is decoded."""
    output_tokens_details: DecisionOutputDetails = DecisionOutputDetails()
    total_tokens: int
    diffusion: DecisionCost


class DecisionResponse(BaseModel):
    """The answers, in the order of the questions."""

    model: str
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer]
    usage: DecisionUsage
