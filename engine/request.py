"""The vocabulary of the engine: what is asked (frozen params), where it stands (`Request`), what comes out (`Output`).

Token ids only, no text and no tensors. The scheduler is the only writer of a `Request`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray

from engine.config import ModelSpec

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn and where an answer ends. `engine.checks` enforces the ranges."""

    max_tokens: Annotated[int, Ge(1)]
    """Tokens to generate at most; the canvas is this, rounded up to blocks."""
    temperature: Annotated[float, Ge(0), Le(2)] = 0.0
    """0 takes the most probable token; above, Gumbel noise is added as in LLaDA's `generate.py`."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Draw among the most probable tokens whose probabilities just exceed this sum."""
    top_k: Annotated[int, Ge(0)] = 0
    """Draw among this many of the most probable tokens; 0 is all of them."""
    seed: int = 0
    """Of the counter-based noise: the same seed gives the same tokens, whatever else is in the batch."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer, beside the model's own."""
    ignore_eos: bool = False
    """Decode the whole canvas even if the model ends its answer earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionParams:
    """How the canvas is decoded: two policies, and the parameters of all policies under their papers' names.

    A new policy's parameter is a field here and nothing else: settings, flags, the API and the checks follow from its
    type, range, default and the text below it.
    """

    cache: str = "dual"
    """Which rows each step recomputes."""
    unmask: str = "threshold"
    """Which scored positions become tokens."""
    block_length: Annotated[int, Ge(1)] = 32
    """Positions decoded together before the next ones, in tokens; dream (one block) and cad have their own."""
    steps: Annotated[int, Ge(1), Le(65_536)] | None = None
    """Denoising steps over the whole canvas, for policies that follow a schedule; null is as many as it has tokens."""
    threshold: Annotated[float, Ge(0), Le(1)] = 0.9
    """threshold, certainty_threshold: confidence from which a token is accepted (Fast-dLLM, arXiv 2505.22618)."""
    factor: Annotated[float, Gt(0), Lt(inf)] = 1.0
    """factor: accepts the n most confident while (n + 1)(1 - confidence) stays below it (Fast-dLLM)."""
    gamma: Annotated[float, Ge(0), Lt(inf)] = 0.001
    """entropy_bound: entropy that tokens decoded together may have beside the largest, in nats (arXiv 2505.24857)."""
    alg: Literal["entropy", "maskgit_plus", "topk_margin", "origin"] = "entropy"
    """dream: the order of tokens, by entropy, by probability, by the lead over the second best, or by chance."""
    alg_temp: Annotated[float, Ge(0), Lt(inf)] | None = None
    """dream: chance in that order; null or 0 is none."""
    eps: Annotated[float, Ge(0), Lt(1)] = 1e-3
    """dream: the time at which its schedule ends, from 1."""
    refresh_before: Annotated[int, Ge(0)] = 32
    """window: positions before a block that are recomputed when it opens."""
    refresh_after: Annotated[int, Ge(0)] = 64
    """window: positions behind the block that are recomputed when it opens."""
    prompt_refresh: Annotated[int, Ge(0)] = 0
    """window: the prompt is recomputed every so many blocks; 0 is never."""
    current_k: Annotated[int, Ge(1)] = 32
    """d2: masked positions recomputed each step, the best by confidence x certainty density (d2Cache, 2509.23094)."""
    rollout_p: Annotated[float, Ge(0), Le(1)] = 0.1
    """d2: share of the attention rollout's mass whose positions are recomputed beside them."""
    sigma: Annotated[float, Gt(0), Lt(inf)] = 10.0
    """d2, certainty: width of the certainty density, in tokens."""
    inflate_w: Annotated[int, Ge(0)] = 4
    """d2: recomputed positions at most this far apart have those between them recomputed too; 0 is never."""
    initial_block_length: Annotated[int, Ge(1)] = 24
    """cad: length of the first block, in tokens (CadLLM, arXiv 2512.07173); in place of `block_length`."""
    min_block_length: Annotated[int, Ge(1)] = 4
    """cad: blocks are no shorter, unless the canvas ends."""
    max_block_length: Annotated[int, Ge(1)] = 64
    """cad: nor longer; the surer the model, the longer the block."""
    initial_steps: Annotated[int, Ge(1)] = 24
    """cad: steps over which the threshold falls in a block of `initial_block_length`, for a sure model."""
    max_steps: Annotated[int, Ge(1)] = 90
    """cad: the same for a model that is not sure at all."""
    confidence_method: Literal["softmax", "entropy"] = "softmax"
    """cad: the proposed token's probability, or 1 / (1 + entropy), each over a subset of the vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One request as it is handed to the engine."""

    request_id: str
    prompt_ids: Sequence[int]
    sampling: SamplingParams
    diffusion: DiffusionParams


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One completed block of one request. The last one carries a finish reason."""

    request_id: str
    token_ids: tuple[int, ...]
    """The block's tokens up to the answer's end; empty when the answer ended right before it."""
    finish_reason: FinishReason | None
    usage: Usage


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
