"""The wire types of log-probabilities, in the form of completions and in that of chat.

An answer may hold hundreds of thousands. JSON is made of all of them in one call, in which no other thread runs but
where it calls Python: so it does, once for each token.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, PlainSerializer

T = TypeVar("T")


def _as_it_is(value: T) -> T:
    return value


Alternatives = Annotated[dict[str, float] | None, PlainSerializer(_as_it_is, return_type=dict[str, float] | None)]


class CompletionLogprobs(BaseModel):
    """Lists of the same length, with an entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """null for a token that nothing says anything about: the first of a prompt, and mask tokens in it."""
    top_logprobs: list[Alternatives]
    """The most probable tokens, and the one that was chosen."""
    text_offset: list[int]
    """Characters of the choice's text before each token."""


@dataclass(slots=True)
class TopLogprob:
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int] | None


@dataclass(slots=True)
class ChatLogprob(TopLogprob):
    """A token that is."""

    top_logprobs: Annotated[Iterable[TopLogprob], PlainSerializer(list, return_type=list[TopLogprob])]
    """Made when they are written, so that they are not all there at once."""


class ChatLogprobs(BaseModel):
    """An entry for each token of the answer."""

    content: list[ChatLogprob]
    refusal: None = None
