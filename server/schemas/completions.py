"""The wire types of /v1/completions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from engine import MAX_LOGPROBS, Range
from server.schemas.logprobs import CompletionLogprobs
from server.schemas.sampling import SamplingRequest, TokenId
from server.schemas.trace import TraceStep
from server.schemas.usage import CompletionUsage
from server.schemas.wire import INT64, IdsIfAsked, IfGiven, Text, check_unicode, spelled_off, whole_numbers

MAX_PROMPTS = 128
MAX_BEST_OF = 20
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for completions."""
NO_LIMIT = -1
"""As `max_tokens`: some clients write so that they have no wish, where leaving it out would be `DEFAULT_MAX_TOKENS`."""

_Ids = Annotated[list[TokenId], Field(min_length=1)]
_Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
_AnyPrompt = str | _Texts | _Ids | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
_NumLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
Prompts = list[str] | list[list[int]]
"""Each has its choices in the answer."""


def _read_prompts(value: Any) -> Prompts:
    """By hand, since a union would report a long list of ids once per element and branch."""
    value = whole_numbers(value)
    prompts = [value] if isinstance(value, str) or (value and _is_ids(value)) else value
    if not isinstance(prompts, list) or not prompts:
        message = "must be a string, a list of strings, a list of token ids, or a list of such lists"
        raise PydanticCustomError("prompt", message)
    if len(prompts) > MAX_PROMPTS:
        raise PydanticCustomError("prompt", f"must not hold more than {MAX_PROMPTS} prompts")
    if all(isinstance(prompt, str) for prompt in prompts):
        return [check_unicode(prompt) for prompt in prompts]
    prompts = list(map(whole_numbers, prompts))
    if all(_is_ids(prompt) for prompt in prompts):
        return prompts
    raise PydanticCustomError("prompt", "must hold either strings, or token ids, or lists of token ids")


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < INT64 for item in value)


class CompletionRequest(SamplingRequest):
    """Body of POST /v1/completions."""

    prompt: Annotated[Prompts, PlainValidator(_read_prompts, json_schema_input_type=_AnyPrompt)]
    """A text, a list of texts, token ids, or a list of such lists. A text may hold holes to be filled, `<|fill:8|>`."""
    suffix: Text = ""
    """Text behind the answer, which is kept while `max_tokens` positions between it and the prompt are filled."""
    echo: bool = False
    """Answer with the prompt before the text; of infilling, with the completed text."""
    max_tokens: Annotated[int, Field(ge=-1, lt=INT64)] | None = None
    """Tokens to generate at most; they must fit the context with the prompt. Absent is 16, and -1 the server's setting
    `default_max_tokens`, or what the context still holds, whichever is less. 0 needs `echo`; with holes in the prompt
    it may only be their sum."""
    logprobs: Annotated[
        _NumLogprobs | None,
        BeforeValidator(spelled_off(False), json_schema_input_type=_NumLogprobs | Literal[False] | None),
    ] = None
    """Answer with each token's log-probability in the step that decoded it, and those of this many of the most
    probable tokens. With `echo`, the prompt is scored too."""
    best_of: Annotated[int, Field(ge=0, le=MAX_BEST_OF)] | None = None
    """Draw this many answers to each prompt and return the `n` with the highest mean log-probability of their tokens;
    absent or 0 is `n`. More than `n` is not for streams."""

    @property
    def num_asked(self) -> int | None:
        """`max_tokens`, if it is a number of tokens."""
        return None if self.max_tokens == NO_LIMIT else self.max_tokens

    @field_validator("max_tokens")
    @classmethod
    def _zero_only_with_echo(cls, max_tokens: int | None, info: ValidationInfo) -> int | None:
        if max_tokens == 0 and not info.data.get("echo"):
            raise PydanticCustomError("max_tokens", "may be 0 only with `echo` true")
        return max_tokens

    @field_validator("best_of")
    @classmethod
    def _best_of_several(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        n = info.data.get("n", 1)
        if best_of and best_of < n:
            raise PydanticCustomError("best_of", "must be at least `n`")
        if best_of and best_of > n and info.data.get("stream"):
            raise PydanticCustomError("best_of", "must not be more than `n` with `stream` true")
        return best_of


class CompletionChoice(BaseModel):
    """One answer, or what a block adds to it."""

    index: int
    """Number of the prompt x `n` + number of the answer to it."""
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None
    """The stop string or the one of `stop_token_ids` that ended the answer."""
    token_ids: IdsIfAsked = None
    step_map: IdsIfAsked = None
    """The step that decoded each of the tokens that `token_ids` lists, from 1; only if asked for."""
    shown: IfGiven[list[Range]] = None
    """Positions of the canvas whose tokens the text shows, each range from the first to before the second: one for each
    hole, or one. Only with `diffusion.trace`; in a stream, of the choice's last chunk."""
    prompt_token_ids: IdsIfAsked = None


class CompletionResponse(BaseModel):
    """A whole answer, or one chunk of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = None
    system_fingerprint: str
    trace: IfGiven[TraceStep | list[TraceStep]] = None
    """Only if asked for: each step of each choice; in events named `unmask.step`, which have no choices, one."""
