"""Attention over a paged KV pool: writes this step's keys and values in place, then reads below each row's horizon.

Two kernels with one contract: `attend_rows` is the definition, row by row; `attend_segments` is what runs. Where the
weights themselves are asked for, `attend_watched` takes the kernel's place. Knows layers as numbers and sequences as
slots; which rows come, and why, is not its business.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Watched(NamedTuple):
    """A segment whose attention weights somebody wants to see."""

    segment: Segment
    layers: list[Tensor]
    """Filled by the forward, one a layer: the mean over heads, float32 [rows, visible]."""


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
    """With the watched ones, these cover all rows."""
    kernel: Kernel
    watched: Sequence[Watched] = ()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        keys.index_copy_(0, self.slots, k)
        values.index_copy_(0, self.slots, v)
        out = self.kernel(q, keys, values, self.segments)
        for segment, layers in self.watched:
            out[segment.start : segment.stop], weights = attend_watched(q, keys, values, segment)
            layers.append(weights)
        return out


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
    """The slow twin: softmax(q k / sqrt(head_dim)) v, one row and one head group at a time.

    q [rows, heads, head_dim], keys and values [slots, kv_heads, head_dim] -> [rows, heads, head_dim]; rows outside
    the segments are undefined.
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


WATCHED_WEIGHTS = {"cpu": 2**21, "cuda": 2**25}
"""Attention weights that `attend_watched` makes at once, unless one group of heads has more: caches are small, and
launches cost."""


def attend_watched(q: Tensor, keys: Tensor, values: Tensor, segment: Segment) -> tuple[Tensor, Tensor]:
    """What `attend_segments` computes for one segment, with weights: [rows, heads, head_dim] and [rows, visible].

    The weights are the mean over heads, in float32. A few groups of heads at a time, so that what is held does not
    grow with the number of heads.
    """
    rows = slice(segment.start, segment.stop)
    k = keys[segment.visible].permute(1, 2, 0)  # [kv_heads, head_dim, visible]
    v = values[segment.visible].transpose(0, 1)  # [kv_heads, visible, head_dim]
    count, heads, head_dim = q[rows].shape
    kv_heads, visible = len(k), k.shape[-1]
    # The heads of one group share their keys: [kv_heads, group * rows, head_dim].
    queries = (q[rows] * head_dim**-0.5).view(count, kv_heads, -1, head_dim).permute(1, 2, 0, 3).flatten(1, 2)
    out = torch.empty_like(queries)
    mean = torch.zeros(count, visible, device=q.device)
    share = torch.full((heads,), 1 / heads, device=q.device)
    at_once = max(WATCHED_WEIGHTS[q.device.type] // (queries.shape[1] * visible), 1)
    for first in range(0, kv_heads, at_once):
        part = slice(first, first + at_once)
        weights = (queries[part] @ k[part]).softmax(dim=-1, dtype=torch.float32)
        out[part] = weights.to(v.dtype) @ v[part]
        by_head = weights.view(-1, mean.numel())
        mean.view(-1).addmv_(by_head.T, share[: len(by_head)])
    attended = out.view(kv_heads, -1, count, head_dim).permute(2, 0, 1, 3).flatten(1, 2)
    return attended, mean
