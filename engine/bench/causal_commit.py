"""The decoding loops of models that commit causally, written plainly: the slow twin of the engine, as `reference` is.

A sequence is what was committed, each position with what it sees; every forward computes all of it again. Source:
Nemotron-Labs-Diffusion's `generate`, `ar_generate` and `linear_spec_generate`, and vLLM's `nemotron_dllm`. Knows the
model, but no pages, batches or requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.bench.reference import most_confident, propose
from engine.models.layers import Transformer

Policy = Literal["confidence_threshold", "low_confidence", "leftmost"]


class _Context:
    """Rows of one sequence, each of which sees all positions before its end."""

    def __init__(self, ends: Tensor) -> None:
        self._seen = torch.arange(len(ends), device=ends.device) < ends[:, None]  # [rows, rows]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (rows.transpose(0, 1)[None] for rows in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self._seen, enable_gqa=True)
        return attended[0].transpose(0, 1)  # from [1, heads, rows, head_dim]


class CommittedSequence:
    """Tokens with what each sees, and the three kinds of forward behind them."""

    def __init__(self, model: Transformer) -> None:
        self.forwards = 0
        self._model, self._ids, self._ends = model, list[int](), list[int]()

    def append(self, ids: Sequence[int], *, is_causal: bool = True) -> Tensor:
        """Commits these tokens -> their logits [len(ids), vocab]. Without `is_causal`, each sees all of them."""
        before = len(self._ids)
        length = before + len(ids)
        ends = list(range(before + 1, length + 1)) if is_causal else [length] * len(ids)
        logits = self._forward(ids, ends)
        self._ids, self._ends = [*self._ids, *ids], [*self._ends, *ends]
        return logits

    def look(self, ids: Sequence[int], *, is_adapted: bool = False) -> Tensor:
        """Logits [len(ids), vocab] of tokens that see each other, and of which nothing is kept."""
        return self._forward(ids, [len(self._ids) + len(ids)] * len(ids), is_adapted=is_adapted)

    def drop(self, count: int) -> None:
        """Takes the last tokens back."""
        if count:
            self._ids, self._ends = self._ids[:-count], self._ends[:-count]

    def _forward(self, ids: Sequence[int], ends: Sequence[int], *, is_adapted: bool = False) -> Tensor:
        self.forwards += 1
        device = self._model.embed.device
        every = torch.tensor([*self._ids, *ids], device=device)
        positions = torch.arange(len(every), device=device)
        adapted = (positions >= len(self._ids)).unsqueeze(-1) if is_adapted else None
        context = _Context(torch.tensor([*self._ends, *ends], device=device))
        return self._model.logits(self._model(every, positions, context, adapted=adapted)[len(self._ids) :])


@dataclass(frozen=True, slots=True)
class Decoded:
    """The tokens that a loop wrote, up to and with the first end, and its cost."""

    tokens: list[int]
    forwards: int
    """All of them, the prompt's too, and that which commits the last block, as the published samplers do."""
    steps: list[int] = field(default_factory=list)
    """Looks at each block; at each round's draft."""
    accepted: list[int] = field(default_factory=list)
    """Tokens that each round of self-speculation gained."""


@torch.inference_mode()
def decode_diffusion(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    gen_length: int,
    block_length: int,
    threshold: float | None,
    mask_id: int,
    eos_id: int | None,
    causal_context: bool = True,
) -> Decoded:
    """`generate`: a block begins with what the causal row before it says, and is denoised.

    A step takes all that reach the threshold, and the most confident; without a threshold, the block's masks are spread
    over as many steps as it is long. Without `causal_context`, all rows see all of their part, and no token is said.
    """
    sequence, answer, steps = CommittedSequence(model), list[int](), list[int]()
    logits = sequence.append(prompt_ids, is_causal=causal_context)
    for _ in range(gen_length // block_length):
        block, step = torch.full((block_length,), mask_id), 0
        masked = torch.ones(block_length, dtype=torch.bool)
        if causal_context:
            block[0], masked[0] = propose(logits[-1:], mask_id)[1], False
        share, extra = divmod(int(masked.sum()), block_length)
        while masked.any() and not (step and _has_ended(block, masked, eos_id)):
            targets = masked.nonzero().squeeze(-1)
            confidence, tokens = propose(sequence.look(block.tolist())[targets], mask_id)
            if threshold is None:
                accepted = most_confident(confidence, share + (step < extra))
            else:
                accepted = (confidence >= threshold) | most_confident(confidence, 1)
            block[targets[accepted]], masked[targets[accepted]] = tokens[accepted], False
            step += 1
        steps.append(step)
        answer += block.tolist()
        logits = sequence.append(block.tolist(), is_causal=causal_context)
        if eos_id in answer:
            break
    return Decoded(_until(answer, eos_id), sequence.forwards, steps)


@torch.inference_mode()
def decode_autoregressively(
    model: Transformer, prompt_ids: Sequence[int], *, gen_length: int, mask_id: int, eos_id: int | None
) -> Decoded:
    """`ar_generate`: one token after the other, each the best of the last causal row."""
    sequence, answer = CommittedSequence(model), list[int]()
    logits = sequence.append(prompt_ids)
    while True:
        answer.append(int(propose(logits[-1:], mask_id)[1]))
        if answer[-1] == eos_id or len(answer) == gen_length:
            return Decoded(answer, sequence.forwards)
        logits = sequence.append(answer[-1:])


@torch.inference_mode()
def decode_by_speculation(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    gen_length: int,
    block_length: int,
    threshold: float,
    is_adapted: bool,
    mask_id: int,
    eos_id: int | None,
) -> Decoded:
    """`linear_spec_generate`: rounds that draft a block behind the last token, and keep what causal rows say, too.

    The answer may be longer than asked for, by less than a block.
    """
    sequence, steps, accepted = CommittedSequence(model), list[int](), list[int]()
    answer = propose(sequence.append(prompt_ids)[-1:], mask_id)[1].tolist()
    while eos_id not in answer and len(answer) < gen_length:
        block = torch.tensor([answer[-1], *[mask_id] * (block_length - 1)])
        masked = torch.arange(block_length) > 0
        steps.append(0)
        while masked.any():
            targets = masked.nonzero().squeeze(-1)
            confidence, tokens = propose(sequence.look(block.tolist(), is_adapted=is_adapted)[targets], mask_id)
            taken = confidence >= threshold
            if not taken.any():
                taken = most_confident(confidence, 1)
            block[targets[taken]], masked[targets[taken]] = tokens[taken], False
            steps[-1] += 1
        said = propose(sequence.append(block.tolist()), mask_id)[1]
        count = 1 + int((said[:-1] == block[1:]).cumprod(dim=-1).sum())
        sequence.drop(block_length - count)
        answer += said[:count].tolist()
        accepted.append(count)
    return Decoded(_until(answer, eos_id), sequence.forwards, steps, accepted)


@torch.inference_mode()
def decode_canvas(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    gen_length: int,
    block_length: int,
    policy: Policy,
    threshold: float,
    max_steps: int,
    mask_id: int,
    eos_id: int | None,
) -> Decoded:
    """vLLM's sampler: blocks begin as masks alone, and have `max_steps` at most.

    A step takes the masks that are left over the steps that are left, the most confident or the leftmost ones; or all
    that reach the threshold, and the most confident, and in the last step all.
    """
    sequence, answer, steps = CommittedSequence(model), list[int](), list[int]()
    sequence.append(prompt_ids)
    for _ in range(gen_length // block_length):
        block, masked, step = torch.full((block_length,), mask_id), torch.ones(block_length, dtype=torch.bool), 0
        while masked.any():
            targets = masked.nonzero().squeeze(-1)
            confidence, tokens = propose(sequence.look(block.tolist())[targets], mask_id)
            due = -(-len(targets) // (max_steps - step))
            match policy:
                case "leftmost":
                    accepted = torch.arange(len(targets)) < due
                case "low_confidence":
                    accepted = most_confident(confidence, due)
                case "confidence_threshold":
                    accepted = (confidence >= threshold) | most_confident(confidence, 1)
                    accepted |= torch.tensor(step + 1 == max_steps)
            block[targets[accepted]], masked[targets[accepted]] = tokens[accepted], False
            step += 1
        steps.append(step)
        answer += block.tolist()
        sequence.append(block.tolist())
        if eos_id in answer:
            break
    return Decoded(_until(answer, eos_id), sequence.forwards, steps)


def _has_ended(block: Tensor, masked: Tensor, eos_id: int | None) -> bool:
    """Whether an end is decoded in the block, and nothing before it is masked."""
    ends = ((block == eos_id) & ~masked).nonzero() if eos_id is not None else torch.empty(0)
    return len(ends) > 0 and not masked[: int(ends[0])].any()


def _until(answer: list[int], eos_id: int | None) -> list[int]:
    return answer[: answer.index(eos_id) + 1] if eos_id is not None and eos_id in answer else answer
