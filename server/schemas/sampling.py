"""The fields that completions and chat share: the model, how tokens are drawn, where an answer ends, how it is sent."""

from typing import Annotated, Any, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    field_validator,
)
from pydantic_core import PydanticCustomError

from engine import DiffusionParams
from server.schemas.structured import ConstrainedRequest
from server.schemas.wire import INT64, StreamOptions, WireRequest, check_unicode, spelled_off, whole_numbers
from server.settings.tree import options

MAX_CHOICES = 128
MAX_STOPS = 64
MAX_STOP_LENGTH = 256
MAX_STOP_LENGTHS = 1024
"""Characters of all stop strings together: each may cost as many comparisons at every token."""
MAX_STOP_IDS = 128
MAX_BIASES = 1024
MAX_BAD_WORDS = 64
"""Each becomes two sequences of tokens, and the engine takes 128."""
MAX_SALT_LENGTH = 512
MAX_RELAYED = 8
MAX_ID_LENGTH = 128

ModelName = Annotated[str, Field(max_length=256)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=0, le=1)]
TopK = Annotated[int, Field(ge=-1, lt=INT64)]
Seed = Annotated[Annotated[int, Field(ge=-INT64, lt=INT64)] | None, BeforeValidator(spelled_off(-1))]
TokenId = Annotated[int, Field(ge=0, lt=INT64)]


def _at_once(value: Any, one_by_one: ValidatorFunctionWrapHandler) -> Any:
    """Hundreds of thousands of ids are looked at together; one by one only to say which is wrong."""
    if type(value) is list and value and set(map(type, value)) == {int} and min(value) >= 0 and max(value) < INT64:
        return value
    return one_by_one(value)


TokenIds = Annotated[list[TokenId], Field(fail_fast=True), BeforeValidator(whole_numbers), WrapValidator(_at_once)]
"""Told of the first that is wrong: a hundred thousand errors would take seconds to collect."""
_IdString = Annotated[str, Field(pattern=r"^[0-9]{1,18}$")]
_CLOSED = Field(json_schema_extra={"additionalProperties": False})
Bias = Annotated[float, Field(ge=-100, le=100)]


def _few_biases(value: Any) -> Any:
    """Before each of them is looked at."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise PydanticCustomError("logit_bias", f"may hold {MAX_BIASES} entries")
    return value


Biases = Annotated[dict[_IdString, Bias], _CLOSED, Field(max_length=MAX_BIASES), BeforeValidator(_few_biases)]
Word = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH), AfterValidator(check_unicode)]


def _read_stop(value: Any) -> tuple[str, ...]:
    """An empty one stops nothing: forms with nothing filled in send it."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise PydanticCustomError("stop", "must be a string or a list of strings")
    if len(stops) > MAX_STOPS or not all(len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise PydanticCustomError("stop", f"may hold {MAX_STOPS} strings of up to {MAX_STOP_LENGTH} characters")
    if sum(map(len, stops)) > MAX_STOP_LENGTHS:
        raise PydanticCustomError("stop", f"may hold {MAX_STOP_LENGTHS} characters in all its strings together")
    return tuple(check_unicode(stop) for stop in stops if stop)


_StopString = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
_StopInput = _StopString | Annotated[list[_StopString], Field(max_length=MAX_STOPS)]
Stops = Annotated[tuple[str, ...], PlainValidator(_read_stop, json_schema_input_type=_StopInput)]


_DIFFUSION = {option.name: option for option in options().values() if option.section == "diffusion"}


def _described(name: str, hint: Any) -> Any:
    """The type, which for a policy's name is any text, since the engine checks it: the description lists the names."""
    choices = _DIFFUSION[name].choices
    return Annotated[hint, Field(json_schema_extra={"enum": list(choices)})] if choices and hint is str else hint


_DIFFUSION_FIELDS: dict[str, Any] = {
    name: (_described(name, hint) | None, Field(default=None, description=_DIFFUSION[name].doc))
    for name, hint in get_type_hints(DiffusionParams, include_extras=True).items()
}


class DiffusionRequest(create_model("DiffusionFields", __base__=WireRequest, **_DIFFUSION_FIELDS)):  # type: ignore[misc]
    """How the canvas is decoded: the engine's own parameters; what is absent takes the server's default, and so does
    null but where a field says what it means."""

    nullable = frozenset(option.name for option in _DIFFUSION.values() if option.is_nullable)

    trace: bool = False
    """Tell what each step did: as events named `unmask.step` of a stream, or as `trace` of a whole answer."""
    relay_from: Annotated[list[Annotated[str, Field(max_length=MAX_ID_LENGTH)]], Field(max_length=MAX_RELAYED)] = Field(
        default_factory=list
    )
    """Ids of earlier answers, of the same API key and `cache_salt`, whose keys and values are taken over where the
    prompt repeats their prompts or texts, 16 tokens in a row or more, before the last message of the user. Approximate:
    for texts that need only be there, not for those that are asked about. `usage.diffusion` tells how much it was; an
    id that the server has nothing of changes nothing."""
    step_map: bool = False
    """Tell the step that decoded each token, as `step_map` of a choice, or of each chunk of it."""


class SamplingRequest(ConstrainedRequest):
    """What every request for text may say."""

    model: ModelName = ""
    """One of the names that `GET /v1/models` lists; absent or empty is the first of them. An unknown one is a 404."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    """Answers to each prompt, drawn apart: number i takes its noise from `seed` and i, number 0 from `seed` itself, so
    that `n` of 1 is the first of any `n`."""
    temperature: Temperature | None = None
    """0 takes the most probable token at each position; above, Gumbel noise is added as LLaDA's authors do. Absent is
    the server's setting `temperature`, 0 unless changed, where OpenAI's is 1."""
    top_p: TopP = 1.0
    """Draw each token among the most probable ones whose probabilities just exceed this sum. 0 is greedy decoding."""
    top_k: TopK = 0
    """Draw each token among this many of the most probable ones; 0 and -1 are all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Draw among tokens at least this share as probable as the best one."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken off the logit of every token that the answer holds already, wherever on the canvas: tokens are not decoded
    from left to right."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken off once for each time that the answer holds the token so far, wherever on the canvas."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Divides the positive logits of tokens in the prompt or the answer so far, and multiplies negative ones."""
    logit_bias: Biases = Field(default_factory=dict)
    """Added to the logits of these token ids, which are written as strings, at every position."""
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    """No other token is drawn; absent is all."""
    bad_words: Annotated[list[Word], Field(max_length=MAX_BAD_WORDS)] = Field(default_factory=list)
    """Texts that the answer must not hold, each as it is and after a space. They are kept out as tokens: the same text
    from other tokens is not."""
    min_tokens: Annotated[int, Field(ge=0, lt=INT64)] = 0
    """No stop token is drawn, and no stop string looked for, in the answer's first so many tokens."""
    seed: Seed = None
    """The same seed gives the same text, in any batch on a CPU in float32 and nearly always elsewhere; absent or -1 is
    a new one for each prompt."""
    stop: Stops = ()
    """The answer ends before the first of these texts, wherever blocks split it; at most 1024 characters in all."""
    stop_token_ids: Annotated[TokenIds, Field(max_length=MAX_STOP_IDS)] = Field(default_factory=list)
    """Tokens that end the answer, beside the model's own; they are not part of it."""
    include_stop_str_in_output: bool = False
    """Keep the stop string that ended the answer in its text."""
    ignore_eos: bool = False
    """Decode all of `max_tokens` even if the model ends its answer earlier."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    return_token_ids: bool = False
    """Answer with `token_ids` and `prompt_token_ids` too."""
    return_tokens_as_token_ids: bool = False
    """Write the tokens of log-probabilities as `token_id:5`, which tells apart those that look alike."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds its special tokens (BOS) to a text. Absent is true for completions and false for
    chat, where the template writes them."""
    stream: bool = False
    """Send the answer as server-sent events: one chunk for each completed block, so usually of many tokens."""
    stream_options: StreamOptions | None = None
    """Only with `stream`, unless it asks for nothing."""
    cache_salt: Annotated[str, Field(max_length=MAX_SALT_LENGTH), AfterValidator(check_unicode)] = ""
    """Keys and values of this prompt are shared only with requests of the same salt, and of the same API key."""
    diffusion: DiffusionRequest | None = None
    """How the canvas is decoded; its fields are below. What is absent is as the server's settings say."""

    @field_validator("stream_options")
    @classmethod
    def _only_for_streams(cls, options: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if options and options.asks_for_anything and not info.data.get("stream"):
            raise PydanticCustomError("stream_options", "is only for requests with `stream` true")
        return options
