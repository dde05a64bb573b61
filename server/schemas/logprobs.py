"""The wire types of log-probabilities, in the form of completions and in that of chat."""

from pydantic import BaseModel


class CompletionLogprobs(BaseModel):
    """Lists of the same length, with an entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """null for a token that nothing says anything about: the first of a prompt, and mask tokens in it."""
    top_logprobs: list[dict[str, float] | None]
    """The most probable tokens, and the one that was chosen."""
    text_offset: list[int]
    """Characters of the choice's text before each token."""


class TopLogprob(BaseModel):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A token that is."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """An entry for each token of the answer."""

    content: list[ChatLogprob]
    refusal: None = None
