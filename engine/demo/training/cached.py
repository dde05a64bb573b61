"""Rows as the cache `dual` computes them: an open block sees all else as it was when the block opened."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.demo.decode import DenseContext, rows_through
from engine.demo.training.noise import Batch
from engine.models.layers import Transformer


def cached_rows(model: Transformer, batch: Batch) -> Tensor:
    """The hidden rows [rows, length, dim] of an open block, as the cache `dual` computes it. Rows outside of the
    block are undefined. No gradient flows into the keys and values that were kept: other batches teach those."""
    assert batch.opening is not None
    assert batch.opened is not None
    opening = Opening(len(batch.ids))
    with torch.no_grad():
        rows_through(model, batch.opening, batch.positions, opening)
    context = OpenBlock(len(batch.ids), opened=batch.opened, kept=opening.kept)
    return rows_through(model, batch.ids, batch.positions, context)


@dataclass(frozen=True, kw_only=True)
class Opening(DenseContext):
    """Keeps each layer's keys and values."""

    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.kept.append((k, v))
        return super().attend(layer, q, k, v)


@dataclass(frozen=True, kw_only=True)
class OpenBlock(DenseContext):
    """Keys and values of the places `opened` [rows, length] are computed; all others are those that were kept."""

    opened: Tensor
    kept: Sequence[tuple[Tensor, Tensor]]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        is_new = self.opened.flatten()[:, None, None]
        k, v = (torch.where(is_new, new, old) for new, old in zip((k, v), self.kept[layer], strict=True))
        return super().attend(layer, q, k, v)
