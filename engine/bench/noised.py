"""The decoding loop of models that denoise blocks of random tokens, written plainly: the slow twin of the engine.

The context is read causally, once; a block sees it and all of itself, and is read again when it is finished. Source:
DiffusionGemma's published sampler. Knows the model, but no pages, batches or requests; where draws come from is the
caller's (`Draws`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.models.noised import NoisedTransformer
from engine.models.sandwich import OpenRows


class Draws(Protocol):
    """Blocks count from 0, steps from 1 within one; step 0 is a block's first filling."""

    def tokens(self, block: int, step: int, length: int) -> Tensor:
        """int64 [length] any tokens of the vocabulary."""
        ...

    def samples(self, block: int, step: int, probabilities: Tensor) -> Tensor:
        """float32 [length, vocab] -> int64 [length], a token of each row by its probability."""
        ...


@dataclass
class NoisedContext:
    """Keys and values of a context, layer by layer; those of a block are forgotten after its forward."""

    model: NoisedTransformer
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    length: int = 0
    """Tokens of the context."""
    is_open: bool = False
    """Whether the forward's rows are a block."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = k.transpose(0, 1), v.transpose(0, 1)  # [kv_heads, rows, head_dim]
        if layer in self.keys:
            keys = torch.cat((self.keys[layer], keys), dim=1)
            values = torch.cat((self.values[layer], values), dim=1)
        if not self.is_open:
            self.keys[layer], self.values[layer] = keys, values
        row = torch.arange(self.length, self.length + len(q)).unsqueeze(-1)
        if self.is_open:
            row.fill_(self.length)
        key, window = torch.arange(keys.shape[1]), self.model.config.window_of(layer)
        seen = torch.ones(len(q), len(key), dtype=torch.bool) if self.is_open else key <= row
        if window is not None:
            seen = seen & (key > row - window)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys[None], values[None], attn_mask=seen, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    def read(self, ids: Sequence[int]) -> None:
        """Appends tokens to the context."""
        self.is_open = False
        self.model(torch.tensor(ids), torch.arange(self.length, self.length + len(ids)), self)
        self.length += len(ids)

    def logits(self, block: Tensor, conditioning: Tensor | None) -> Tensor:
        """Of the int64 tokens [length] of a block behind the context -> [length, vocab].

        `conditioning` are the logits of the step before, as they were sampled from.
        """
        self.is_open, model = True, self.model
        vectors = torch.zeros(len(block), model.config.dim)
        if conditioning is not None:
            vectors = model.vectors(conditioning.softmax(dim=-1))
        rows = OpenRows(torch.ones_like(block, dtype=torch.bool), vectors)
        positions = torch.arange(self.length, self.length + len(block))
        return model.logits(model(block, positions, self, open_rows=rows))


@dataclass(frozen=True, slots=True)
class Decoded:
    """The tokens that the loop wrote, and its cost."""

    tokens: list[int]
    """All blocks. Behind an end all is padding."""
    steps: list[int]
    """Denoising steps of each block."""


@torch.inference_mode()
def decode_noised(
    model: NoisedTransformer,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    block_length: int,
    max_denoising_steps: int,
    entropy_bound: float,
    t_min: float,
    t_max: float,
    stability_threshold: int,
    confidence_threshold: float,
    draws: Draws,
    end_ids: Collection[int],
    pad_id: int,
) -> Decoded:
    """The published `generate` of one sequence: as many whole blocks as hold `max_new_tokens`, or up to an end."""
    context, answer, steps = NoisedContext(model), list[int](), list[int]()
    unread = list(prompt_ids)
    for number in range(-(-max_new_tokens // block_length)):
        context.read(unread)
        block, conditioning = draws.tokens(number, 0, block_length), None
        history: list[Tensor] = []
        for step in range(1, max_denoising_steps + 1):
            left = (max_denoising_steps + 1 - step) / max_denoising_steps
            conditioning = context.logits(block, conditioning) / (t_min + (t_max - t_min) * left)
            probabilities, best = conditioning.softmax(dim=-1), conditioning.argmax(dim=-1)
            entropy = -(probabilities * conditioning.log_softmax(dim=-1)).nan_to_num(0.0).sum(dim=-1)
            ordered, order = entropy.sort()
            accepted = torch.zeros(block_length, dtype=torch.bool)
            accepted[order] = ordered.cumsum(dim=-1) - ordered <= entropy_bound
            samples = draws.samples(number, step, probabilities)
            block = torch.where(accepted, samples, draws.tokens(number, step, block_length))
            last = history[len(history) - stability_threshold :] if len(history) >= stability_threshold else None
            history.append(best)
            is_stable = last is not None and all(torch.equal(before, best) for before in last)
            if is_stable and entropy.mean() < confidence_threshold:
                break
        steps.append(step)
        unread = best.tolist()
        answer += unread
        if ends := [place for place, token in enumerate(unread) if token in end_ids]:
            behind = block_length - ends[0] - 1
            answer[len(answer) - behind :] = [pad_id] * behind
            break
    return Decoded(answer, steps)
