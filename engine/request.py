"""The vocabulary of the engine: what is asked (`Submission`), where it stands (`Request`), what comes out (`Output`).

Token ids only, no text and no tensors. The scheduler is the only writer of a `Request`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from engine.config import ModelSpec
from engine.params import DiffusionParams, SamplingParams

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


class FinishReason(StrEnum):
    """Why a request ended, in OpenAI's words where it has one."""

    STOP = "stop"
    """An end-of-sequence or stop token."""
    LENGTH = "length"
    """`max_tokens` are out."""
    ABORT = "abort"
    """The caller withdrew it, or the engine shut down."""
    ERROR = "error"
    """The engine failed while serving it."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Masked positions within a prompt."""

    offset: int
    """Prompt tokens before it."""
    length: int
    """Positions to fill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One request as it is handed to the engine."""

    request_id: str
    prompt_ids: Sequence[int]
    sampling: SamplingParams
    diffusion: DiffusionParams
    holes: tuple[Hole, ...] = ()
    """Infilling: the canvas is the prompt with these in it, ascending and apart, and nothing comes behind it.

    Every hole is filled to its last position: no token ends the answer, and `sampling.max_tokens` is their sum.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a request has cost so far."""

    prompt_tokens: int
    completion_tokens: int
    """Tokens handed out; the token that ends an answer, and what follows it, are not."""
    forwards: int
    """Steps this request took part in."""
    rows_computed: int
    """Positions whose hidden states were computed, over all forwards."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One completed block of one request. The last one carries a finish reason."""

    request_id: str
    token_ids: tuple[int, ...]
    """The block's tokens up to the answer's end; empty when the answer ended right before it. Of holes, all tokens."""
    finish_reason: FinishReason | None
    usage: Usage
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One for each of `token_ids`; None unless asked for."""
    stop_id: int | None = None
    """The token that ended the answer, if one did; not among `token_ids`."""


@dataclass(slots=True)
class Block:
    """The span [start, end) of the canvas that is being decoded."""

    index: int
    start: int
    end: int
    num_masked: int
    """Masked positions when the block was opened."""
    step: int = 0
    """Denoising steps done in it."""


@dataclass(slots=True)
class History:
    """What the steps so far have said, for policies that look back. Arrays cover the canvas, prompt included."""

    confidence: Floats
    """[end] of each position's proposal when it was last scored; 0 where it never was."""
    importance: Floats
    """[end] attention that reaches each position, as last measured (`engine.rollout`); 0 before."""
    decoded: Ids
    """Positions that the last step decoded, ascending."""
    mean_confidence: list[float] = field(default_factory=list)
    """Of each step: the mean over the open block's targets."""
    tokens: list[int] = field(default_factory=list)
    """Everything decoded, in the order of steps, and of positions within one."""

    @classmethod
    def empty(cls, end: int) -> "History":
        """Before the first step of a canvas that ends at `end`."""
        return cls(confidence=np.zeros(end), importance=np.zeros(end), decoded=np.empty(0, np.int64))


def canvas_length(sampling: SamplingParams, diffusion: DiffusionParams) -> int:
    """`max_tokens` rounded up to whole blocks, in tokens."""
    return -(-sampling.max_tokens // diffusion.block_length) * diffusion.block_length


@dataclass(slots=True, eq=False)
class Request:
    """A canvas on its way from all masks to an answer.

    `ids[p]` is the token at position p, or the mask token where `masked[p]`: masked-ness is state, since a prompt may
    contain the literal mask token.
    """

    id: str
    spec: ModelSpec
    sampling: SamplingParams
    diffusion: DiffusionParams
    prompt_len: int
    ids: Ids
    masked: Mask
    block: Block
    history: History
    pages: tuple[int, ...] = ()
    """The KV pages it holds, ascending; empty while it waits."""
    slots: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    """The KV slot of each position, while it holds pages."""
    forwards: int = 0
    rows_computed: int = 0
    completion_tokens: int = 0
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """Of each decoded position, if they were asked for."""

    @classmethod
    def new(cls, submission: Submission, spec: ModelSpec) -> "Request":
        """A fresh canvas: the prompt, then `max_tokens` masks rounded up to blocks, the first block open."""
        prompt_len, length = len(submission.prompt_ids), submission.diffusion.block_length
        end = prompt_len + canvas_length(submission.sampling, submission.diffusion)
        ids = np.full(end, spec.mask_id, dtype=np.int64)
        ids[:prompt_len] = submission.prompt_ids
        return cls(
            id=submission.request_id,
            spec=spec,
            sampling=submission.sampling,
            diffusion=submission.diffusion,
            prompt_len=prompt_len,
            ids=ids,
            masked=np.arange(end) >= prompt_len,
            block=Block(index=0, start=prompt_len, end=prompt_len + length, num_masked=length),
            history=History.empty(end),
        )

    @property
    def end(self) -> int:
        """One past the canvas's last position."""
        return len(self.ids)

    @property
    def num_blocks(self) -> int:
        return (self.end - self.prompt_len) // self.diffusion.block_length

    @property
    def limit(self) -> int:
        """One past the last position that may be part of the answer: `max_tokens` need not fill the canvas."""
        return self.prompt_len + self.sampling.max_tokens

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every token that ends this answer."""
        return self.sampling.stop_ids if self.sampling.ignore_eos else self.sampling.stop_ids | self.spec.eos_ids

    @property
    def targets(self) -> Ids:
        """Masked positions of the open block, ascending: the only ones whose logits matter now."""
        start, end = self.block.start, self.block.end
        return start + np.flatnonzero(self.masked[start:end])

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_len,
            completion_tokens=self.completion_tokens,
            forwards=self.forwards,
            rows_computed=self.rows_computed,
        )
