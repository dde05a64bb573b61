"""The wire types of /tokenize and /detokenize."""

from typing import Annotated

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.sampling import TokenIds
from server.schemas.template import Messages, TemplateRequest
from server.schemas.wire import Text, WireRequest


class TokenizeRequest(TemplateRequest):
    """Body of POST /tokenize: a text, or a conversation."""

    model: Annotated[str, Field(max_length=256)] = ""
    """One of the names that `GET /v1/models` lists; absent is the first."""
    prompt: Text | None = None
    """A text."""
    messages: Messages | None = None
    """A conversation, in place of `prompt`."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds its special tokens; absent is true for a text and false for a conversation."""
    return_token_strs: bool = False
    """Answer with the tokens as the vocabulary writes them too."""

    @field_validator("prompt")
    @classmethod
    def _without_tools(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        if prompt is not None and info.data.get("tools"):
            raise PydanticCustomError("tokenize", "cannot stand beside `tools`, which are for `messages`")
        return prompt

    @model_validator(mode="after")
    def _one_of_two(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("tokenize", "Give either `prompt` or `messages`")
        return self


class TokenizeResponse(BaseModel):
    """The tokens, and how many the model can take."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(WireRequest):
    """Body of POST /detokenize."""

    model: Annotated[str, Field(max_length=256)] = ""
    """One of the names that `GET /v1/models` lists; absent is the first."""
    tokens: TokenIds
    """Token ids, no more than the context holds."""


class DetokenizeResponse(BaseModel):
    """The text of the tokens, special ones included."""

    prompt: str


class AddedToken(BaseModel):
    """A token beside the vocabulary."""

    content: str
    special: bool
    """Whether it is a control token."""


class TokenizerInfo(BaseModel):
    """What clients that render and count for themselves need, under the names of `tokenizer_config.json`."""

    tokenizer_class: str
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    mask_token: str | None
    chat_template: str | None
    added_tokens_decoder: dict[int, AddedToken]
    """By token id."""
