"""The demo model's own decoder: LLaDA's block loop on dense tensors, and the exact accuracy that it reaches.

Made for the learning curve, so a batch of prompts is decoded together and nothing after an EOS is computed. Serving is
the engine's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from engine.demo.build_tokenizer import EOS, MASK, token_id
from engine.demo.samples import BLOCK
from engine.demo.tasks import Problem
from engine.models.layers import Transformer


@dataclass(frozen=True, slots=True)
class DenseContext:
    """Full attention within each of `rows` sequences; keys where `valid` [rows, length] is false are not seen."""

    rows: int
    valid: Tensor | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.view(self.rows, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        mask = None if self.valid is None else self.valid[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(0, 1)


def hidden_rows(model: Transformer, ids: Tensor, valid: Tensor | None = None) -> Tensor:
    """ids [rows, length] -> hidden [rows, length, dim]."""
    rows, length = ids.shape
    positions = torch.arange(length).repeat(rows)
    hidden: Tensor = model(ids.flatten(), positions, DenseContext(rows, valid))
    return hidden.view(rows, length, -1)


@torch.inference_mode()
def decode(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str], threshold: float | None = None, canvas: int = 64
) -> list[str]:
    """Answers up to the first EOS: the surest token of the block a step, or every one as sure as `threshold`."""
    mask_id, eos_id = token_id(tokenizer, MASK), token_id(tokenizer, EOS)
    prompt_ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    starts = torch.tensor([len(ids) for ids in prompt_ids])
    ids = torch.full((len(prompts), int(starts.max()) + canvas), eos_id)
    for row, prompt in enumerate(prompt_ids):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        ids[row, len(prompt) : len(prompt) + canvas] = mask_id
    place = torch.arange(ids.shape[1]) - starts[:, None]
    valid, masked = place < canvas, (place >= 0) & (place < canvas)
    for first in range(0, canvas, BLOCK):
        block = masked & (place >= first) & (place < first + BLOCK)
        ended = ((ids == eos_id) & (place >= 0) & (place < first)).any(dim=1, keepdim=True)
        block &= ~ended
        while (live := block.any(dim=1)).any():
            hidden = hidden_rows(model, ids[live], valid[live])
            logits = model.logits(hidden[block[live]])
            logits[:, mask_id] = -torch.inf
            sureness, tokens = logits.softmax(dim=-1).max(dim=-1)
            sure = torch.zeros(ids.shape).masked_scatter(block, sureness)
            chosen = block & (sure == sure.max(dim=1, keepdim=True).values)
            chosen &= chosen.cumsum(dim=1) == 1  # one of equals
            if threshold is not None:
                chosen |= block & (sure >= threshold)
            written = torch.zeros_like(ids).masked_scatter(block, tokens)
            ids, block = torch.where(chosen, written, ids), block & ~chosen
    answers = (row[start : start + canvas].tolist() for row, start in zip(ids, starts, strict=True))
    return [tokenizer.decode(answer[: answer.index(eos_id)] if eos_id in answer else answer) for answer in answers]


def accuracy(
    model: Transformer,
    tokenizer: Tokenizer,
    asked: Sequence[tuple[Problem, str]],
    threshold: float | None = None,
    canvas: int = 64,
) -> float:
    """The share of (problem, rendered prompt) that is answered exactly."""
    texts = decode(model, tokenizer, [prompt for _, prompt in asked], threshold, canvas)
    return sum(problem.check(text) for (problem, _), text in zip(asked, texts, strict=True)) / len(asked)
