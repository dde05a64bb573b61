"""Attention over a paged KV pool: writes this step's keys and values in place, then reads below each row's horizon.

Two kernels with one contract: `attend_rows` is the definition, row by row; `attend_segments` is what runs. Where
attention weights are asked for, `attend_watched` replaces the kernel. Knows layers as numbers and sequences as slots,
but not which rows come, or why.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.kernels import native
from engine.kernels.products import attention, watched_attention


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, stop) of a batch: neighbours in one sequence that see the same keys."""

    start: int
    stop: int
    visible: slice | Tensor
    """Slots of the positions below their horizon: a slice where pages are neighbours, else int64 indices."""


class Watched(NamedTuple):
    """A segment whose attention weights are asked for."""

    segment: Segment
    layers: list[Tensor]
    """Filled by the forward, for each layer: the weights' mean over heads, float32 [rows, visible]."""


Kernel = Callable[[Tensor, Tensor, Tensor, Sequence[Segment]], Tensor]


class KVPool:
    """Keys (rotated) and values of every slot: two tensors [layers, kv_heads, slots, head_dim].

    Heads come before slots, so that neighbouring slots of one head are contiguous. Keys are not transposed. Transposed
    keys are faster when one canvas fills the pool, but oneDNN has no kernel for a column slice of them: any smaller
    canvas would be about 1,000 times slower.
    """

    def __init__(
        self, layers: int, slots: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        # A slot is written before a horizon reaches it. Only `FlexKernel` reads others, and needs them cleared.
        self.keys = torch.empty(layers, kv_heads, slots, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)

    def clear(self, slots: Tensor | None = None) -> None:
        """Zeroes the values of these slots (int64 indices), or of all.

        For kernels that give values beyond a horizon a weight of 0: 0 times NaN is NaN.
        """
        if slots is None:
            self.values.zero_()
        else:
            self.values.index_fill_(2, slots, 0)

    @property
    def num_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()


@dataclass(frozen=True, slots=True)
class PagedContext:
    """One step's `engine.models.layers.AttentionContext` over the pool."""

    pool: KVPool
    slots: slice | Tensor
    """[rows] where each row's key and value go: a slice where they are neighbours, else int64 indices."""
    segments: Sequence[Segment]
    """With the watched ones, these cover all rows."""
    kernel: Kernel
    watched: Sequence[Watched] = ()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        for kept, new in ((keys, k), (values, v)):
            if isinstance(self.slots, slice):
                kept[:, self.slots] = new.transpose(0, 1)
            else:
                kept.index_copy_(1, self.slots, new.transpose(0, 1))
        out = self.kernel(q, keys, values, self.segments)
        for segment, layers in self.watched:
            out[segment.start : segment.stop], weights = attend_watched(q, keys, values, segment)
            layers.append(weights)
        return out


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
    """The slow twin: softmax(q k / sqrt(head_dim)) v, one row and one head group at a time.

    q [rows, heads, head_dim], keys and values [kv_heads, slots, head_dim] -> [rows, heads, head_dim]; rows outside
    the segments are undefined.
    """
    out = torch.empty_like(q)
    group = q.shape[1] // len(keys)
    for segment in segments:
        k = keys[:, segment.visible].repeat_interleave(group, dim=0)  # [heads, visible, head_dim]
        v = values[:, segment.visible].repeat_interleave(group, dim=0)
        for row in range(segment.start, segment.stop):
            weights = (torch.einsum("hd,hsd->hs", q[row].float(), k.float()) * q.shape[-1] ** -0.5).softmax(dim=-1)
            out[row] = torch.einsum("hs,hsd->hd", weights, v.float()).to(q.dtype)
    return out


def attend_segments(q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
    """One call for all segments where this project's CPU kernel is available, which reads every page in place.

    Otherwise one dense attention per segment, which reads keys and values in place where the pages are neighbours.
    """
    if native.takes(q, keys, values) and (own := native.kernel()):
        return own.attend(q, keys, values, [_reach(segment) for segment in segments])
    if len(segments) == 1 and segments[0].stop - segments[0].start == len(q):
        return attention(q, keys[:, segments[0].visible], values[:, segments[0].visible])
    out = torch.empty_like(q)
    for segment in segments:
        rows = slice(segment.start, segment.stop)
        out[rows] = attention(q[rows], keys[:, segment.visible], values[:, segment.visible])
    return out


def attend_watched(q: Tensor, keys: Tensor, values: Tensor, segment: Segment) -> tuple[Tensor, Tensor]:
    """What `attend_segments` computes for one segment, with weights: [rows, heads, head_dim] and [rows, visible].

    The weights are the mean over heads, in float32.
    """
    rows = q[segment.start : segment.stop]
    return watched_attention(rows, keys[:, segment.visible], values[:, segment.visible])


def _reach(segment: Segment) -> native.Reach:
    start, stop, visible = segment.start, segment.stop, segment.visible
    if isinstance(visible, slice):
        return native.Reach(start, stop, visible.stop - visible.start, first=visible.start)
    return native.Reach(start, stop, len(visible), slots=visible.data_ptr())
