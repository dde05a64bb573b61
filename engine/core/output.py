"""What comes out: an `Output` for each completed block of a request, and what the request has cost.

A request that is watched has a `TracedStep` for each of its steps too, before the output of a block that it completes.

Token ids only, no text. Imports nothing of the engine.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a request ended, in OpenAI's words where there is one."""

    STOP = "stop"
    """An end-of-sequence or stop token, or the last position of an answer that a constraint completes there."""
    LENGTH = "length"
    """`max_tokens` are reached."""
    ABORT = "abort"
    """The caller withdrew it, or the engine shut down."""
    ERROR = "error"
    """The engine failed while serving it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayed:
    """What a request has taken over from the answers that it names."""

    adopted: int
    """Prompt tokens whose keys and values the answers' canvases had."""
    recomputed: int
    """Those of them that were computed again in the first step."""
    unknown: int
    """Names of which nothing is kept, or not for this model and salt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a request has cost so far."""

    prompt_tokens: int
    completion_tokens: int
    """Tokens in outputs, without the token that ends an answer and those behind it."""
    forwards: int
    """Steps this request took part in."""
    rows_computed: int
    """Positions whose hidden states were computed, over all forwards."""
    visible_tokens: int = 0
    """Positions of prompt and canvas that had keys and values in the end; `lookahead` leaves the others out."""
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were shared with an earlier request."""
    kv_evicted: int = 0
    """Tokens of prompt and answer whose keys and values were evicted."""
    kv_resident_peak: int = 0
    """With a `kv_budget`: positions of prompt and canvas that had keys and values at once, at most."""
    relayed: Relayed | None = None
    """Of a request that names answers, once it has run."""

    @property
    def tokens_per_forward(self) -> float:
        return self.completion_tokens / self.forwards if self.forwards else 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What the model itself said of one token, in the step that decoded it: before bias, penalties and temperature."""

    logprob: float
    """Natural logarithm of the token's probability."""
    top: tuple[tuple[int, float], ...]
    """(token, its log-probability) of the most probable ones, the best first, as many as were asked for."""
    named: tuple[float, ...] = ()
    """The log-probability of each of `logprob_ids`, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One completed block of one request. The last one carries a finish reason."""

    request_id: str
    token_ids: tuple[int, ...]
    """The block's tokens up to the answer's end; empty when the answer ended right before it.

    With holes: the tokens that the block filled, in order, without the known tokens between them.
    """
    finish_reason: FinishReason | None
    usage: Usage
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One for each of `token_ids`; None unless asked for."""
    steps: tuple[int, ...] | None = None
    """The step that decoded each of `token_ids`, as `TracedStep.step` counts; None unless asked for."""
    stop_id: int | None = None
    """The token that ended the answer, if one did; not among `token_ids`."""
    admitted_at: float | None = field(default=None, compare=False)
    """When the request left the queue, in seconds of `time.monotonic()`; None if it never did. Not compared."""


Range = tuple[int, int]
"""Positions from the first to before the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """A request's positions, before its first step."""

    end: int
    """Number of positions, prompt included."""
    answer: tuple[Range, ...]
    """Those to fill."""
    output_end: int
    """One past the last position that may be part of the answer."""
    cached_tokens: int
    """Prompt tokens whose keys and values were there before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedStep:
    """What one step did to one request. Positions are of its canvas, ascending.

    The positions and tokens of all steps are the canvas: where a policy replaces tokens, the last one at each position.
    Their number is `Usage.forwards`, and the lengths of their `rows` add up to `Usage.rows_computed`.
    """

    request_id: str
    step: int
    """Counts the steps that the request took part in, from 1."""
    block: Range
    """The open block."""
    rows: tuple[Range, ...]
    """Positions whose hidden states were computed. Those outside of the block were refreshed, or computed first."""
    visible_end: int
    """One past the last position that was attended to."""
    positions: tuple[int, ...]
    """Masks that became tokens, and tokens that were replaced."""
    token_ids: tuple[int, ...]
    """These tokens."""
    confidences: tuple[float, ...]
    """Of each, the probability that its unmask policy saw."""
    canvas: Canvas | None = None
    """In the first step."""
