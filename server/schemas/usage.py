"""The wire types of what an answer has cost."""

from pydantic import BaseModel, Field


class DiffusionUsage(BaseModel):
    """What decoding has cost, beside tokens."""

    cache: str
    unmask: str
    forwards: int
    """Steps that the choices took part in, summed; scoring a prompt included."""
    rows_computed: int
    """Positions whose hidden states were computed."""
    tokens_per_forward: float
    fills: list[str] | None = Field(default=None, exclude_if=lambda fills: fills is None)
    """Of infilling: the text of each hole, in the order of choices and of holes in them."""


class CompletionUsage(BaseModel):
    """Tokens of the prompts, each counted once, and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    diffusion: DiffusionUsage
