"""The wire types of /v1/decisions, as OpenAI's SDK has them, and the `diffusion` object."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, PlainValidator, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from server.decisions.labels import MOST_LEVELS, MOST_OPTIONS
from server.protocols.decisions.items import Items, Parts, read_text
from server.schemas import WireRequest
from server.schemas.sampling import MAX_SALT_LENGTH, ModelName
from server.schemas.template import Name
from server.schemas.wire import Text, check_unicode

MAX_QUESTIONS = 400

_Given = Annotated[str, Field(min_length=1), AfterValidator(check_unicode)]


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
    text = read_text(value)
    if not text.strip():
        raise PydanticCustomError("instructions", "must say what is asked")
    return text


class DecisionQuestion(WireRequest):
    """A question about the input."""

    type: Literal["predicate", "choice", "score"]
    """How likely a statement is true; which of some options applies; which of some ordered levels."""
    instructions: Annotated[str, PlainValidator(_read_instructions, json_schema_input_type=str | Parts)]
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

    model: ModelName = ""
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
