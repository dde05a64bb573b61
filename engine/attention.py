"""Attention over a paged KV pool: writes this step's keys and values in place, then reads below each row's horizon.

Two kernels with one contract: `attend_rows` is the definition, row by row; `attend_segments` is what runs. Knows
layers as numbers and sequences as slots; which rows come, and why, is not its business.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, stop) of a batch: neighbours in one sequence that see the same keys."""

    start: int
    stop: int
    visible: slice | Tensor
    """Slots of the positions below their horizon: a slice where pages are neighbours, else int64 indices."""


Kernel = Callable[[Tensor, Tensor, Tensor, Sequence[Segment]], Tensor]


class KVPool:
    """Keys (rotated) and values of every slot: two tensors [layers, slots, kv_heads, head_dim]."""

    def __init__(
        self, layers: int, slots: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        # A slot is always written before a horizon reaches it, so there is nothing to clear.
        self.keys = torch.empty(layers, slots, kv_heads, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)

    @property
    def num_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()


@dataclass(frozen=True, slots=True)
class PagedContext:
    """One step's `engine.models.layers.AttentionContext` over the pool."""

    pool: KVPool
    slots: Tensor
    """[rows] where each row's key and value go."""
    segments: Sequence[Segment]
    """Cover all rows in order."""
    kernel: Kernel

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        keys.index_copy_(0, self.slots, k)
        values.index_copy_(0, self.slots, v)
        return self.kernel(q, keys, values, self.segments)


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
    """The slow twin: softmax(q k / sqrt(head_dim)) v, one row and one head group at a time.

    q [rows, heads, head_dim], keys and values [slots, kv_heads, head_dim] -> [rows, heads, head_dim].
    """
    out = torch.empty_like(q)
    group = q.shape[1] // keys.shape[1]
    for segment in segments:
        k = keys[segment.visible].repeat_interleave(group, dim=1)  # [visible, heads, head_dim]
        v = values[segment.visible].repeat_interleave(group, dim=1)
        for row in range(segment.start, segment.stop):
            weights = (torch.einsum("hd,shd->hs", q[row].float(), k.float()) * q.shape[-1] ** -0.5).softmax(dim=-1)
            out[row] = torch.einsum("hs,shd->hd", weights, v.float()).to(q.dtype)
    return out


def attend_segments(q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
    """One fused SDPA per segment; keys and values are read in place where a sequence's pages are neighbours."""
    out = torch.empty_like(q)
    grouped = q.shape[1] != keys.shape[1]
    for segment in segments:
        rows = slice(segment.start, segment.stop)
        attended = scaled_dot_product_attention(
            q[rows].transpose(0, 1).unsqueeze(0),
            keys[segment.visible].transpose(0, 1).unsqueeze(0),
            values[segment.visible].transpose(0, 1).unsqueeze(0),
            enable_gqa=grouped,
        )  # [1, heads, rows, head_dim]
        out[rows] = attended.squeeze(0).transpose(0, 1)
    return out
