"""The demo models' own decoder: the block loop on dense tensors, and the exact accuracy that it reaches.

Made for the learning curve, so a batch of prompts is decoded together and nothing after an EOS is computed. Serving is
the engine's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from engine.demo.build_tokenizer import token_id
from engine.demo.chat import EOS, MASK
from engine.demo.families.problem import Problem
from engine.demo.training.masks import BLOCK
from engine.models.layers import Transformer


@dataclass(frozen=True, slots=True)
class DenseContext:
    """Attention within each of `rows` sequences: keys where `seen` [rows, 1, queries or 1, keys] is true, or all."""

    rows: int
    seen: Tensor | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.view(self.rows, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, self.seen).transpose(1, 2).flatten(0, 1)


def hidden_rows(model: Transformer, ids: Tensor, seen: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
    """ids [rows, length] -> hidden [rows, length, dim]. `seen`: [rows or 1, queries or 1, keys]."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape) if positions is None else positions
    return rows_through(model, ids, positions, DenseContext(len(ids), None if seen is None else seen[:, None]))


def rows_through(model: Transformer, ids: Tensor, positions: Tensor, context: DenseContext) -> Tensor:
    """ids and positions [rows, length] -> hidden [rows, length, dim]."""
    hidden: Tensor = model(ids.flatten(), positions.flatten(), context)
    return hidden.view(*ids.shape, -1)


def decode(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    threshold: float | None = None,
    canvas: int = 64,
    block: int | None = None,
) -> list[str]:
    """Answers up to the first EOS: the surest token of the block a step, or every one as sure as `threshold`.

    `block`: of a block-causal model, whose blocks lie on a grid from the prompt's first token on. None: full attention
    and blocks of BLOCK from the answer's first token on.
    """
    mask_id, eos_id = token_id(tokenizer, MASK), token_id(tokenizer, EOS)
    prompt_ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    device = model.embed.device
    starts = torch.tensor([len(ids) for ids in prompt_ids], device=device)
    grid = block or 1
    ends = (starts + canvas + grid - 1) // grid * grid  # the canvas is filled to the end of its last block
    ids = torch.full((len(prompts), int(ends.max())), eos_id, device=device)
    for row, prompt in enumerate(prompt_ids):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        ids[row, len(prompt) : ends[row]] = mask_id
    positions = torch.arange(ids.shape[1], device=device)
    place = positions - starts[:, None]
    masked = (place >= 0) & (positions < ends[:, None])
    if block is None:
        number, seen = place.div(BLOCK, rounding_mode="floor"), (place < canvas)[:, None]
    else:
        number = positions // block - (starts // block)[:, None]
        seen = (positions // block <= (positions // block)[:, None])[None].expand(len(ids), -1, -1)
    for opened in range(int(number[masked].max()) + 1):
        open_block = masked & (number == opened)
        ended = ((ids == eos_id) & masked & (number < opened)).any(dim=1, keepdim=True)
        open_block &= ~ended
        last = torch.where(open_block, positions, 0).max()
        end = len(positions) if block is None else int(last) + 1
        while (live := open_block.any(dim=1)).any():
            hidden = hidden_rows(model, ids[live, :end], seen[live][:, :end, :end] if block else seen[live])
            # In float32 all that a sure model says has the probability 1.
            sureness = model.logits(hidden[open_block[live, :end]]).double().softmax(dim=-1)
            sureness[:, mask_id] = 0.0
            sureness, tokens = sureness.max(dim=-1)
            sure = torch.zeros(ids.shape, dtype=torch.float64, device=device).masked_scatter(open_block, sureness)
            chosen = open_block & (sure == sure.max(dim=1, keepdim=True).values)
            chosen &= chosen.cumsum(dim=1) == 1  # one of equals
            if threshold is not None:
                chosen |= open_block & (sure >= threshold)
            written = torch.zeros_like(ids).masked_scatter(open_block, tokens)
            ids, open_block = torch.where(chosen, written, ids), open_block & ~chosen
    answers = (row[start : start + canvas].tolist() for row, start in zip(ids, starts, strict=True))
    return [tokenizer.decode(answer[: answer.index(eos_id)] if eos_id in answer else answer) for answer in answers]


def accuracy(
    model: Transformer,
    tokenizer: Tokenizer,
    asked: Sequence[tuple[Problem, str]],
    threshold: float | None = None,
    canvas: int = 64,
    block: int | None = None,
) -> float:
    """The share of (problem, rendered prompt) that is answered exactly."""
    texts = decode(model, tokenizer, [prompt for _, prompt in asked], threshold, canvas, block)
    return sum(problem.check(text) for (problem, _), text in zip(asked, texts, strict=True)) / len(asked)
