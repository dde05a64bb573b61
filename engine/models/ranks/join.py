"""Makes of a rank's part a model whose rows are those of the whole one: parts of sums are added up over all ranks.

A forward of the parts asks for the same sums, in the same order, on every rank. Knows modules by name, and no module
knows of it.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from engine.models.layers import Transformer, TransformerConfig
from engine.models.ranks.cut import Rank

Sum = Callable[[Tensor], Tensor]
"""A tensor of this rank's -> its sum over all ranks, the same bit by bit on each; it may be computed in place."""

_PARTIAL = re.compile(r"blocks\.\d+\.(attention\.out|attention\.adapter\.down|mlp|moe\.experts)|conditioning\.mlp")
"""Modules that sum over what is cut: heads, or the width of an MLP. Each rank has a part of their sums."""


class Rows(NamedTuple):
    """What the sizes of a forward's sums depend on."""

    rows: int
    wanted: int
    is_adapted: bool
    is_open: bool
    """Whether there are `OpenRows`."""


def join(part: Transformer, rank: Rank, add_up: Sum) -> None:
    """From now on `part` computes the hidden rows of the whole model, if all ranks' parts do so together.

    Its logits are those of the rank's tokens.
    """
    first = rank.number * part.config.vocab_size

    def embed(model: Transformer, ids: Tensor) -> Tensor:
        own = ids - first
        is_others = (own < 0) | (own >= len(model.embed))
        return add_up(F.embedding(own.masked_fill(is_others, 0), model.embed).masked_fill(is_others.unsqueeze(-1), 0.0))

    part.parts = part.parts._replace(embed=embed)
    for name, module in part.named_modules():
        if _PARTIAL.fullmatch(name):
            module.register_forward_hook(partial(_summed, add_up))


def _summed(add_up: Sum, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return add_up(output)


def sums(geometry: TransformerConfig, batch: Rows) -> Iterator[tuple[int, int]]:
    """The shapes of a forward's sums, in their order."""
    dim, adapter = geometry.dim, geometry.draft_adapter
    is_whole = geometry.moe is not None and geometry.moe.block_routing is not None
    yield batch.rows, dim
    if batch.is_open:
        yield batch.rows, dim
    for layer in range(geometry.num_layers):
        is_cut = layer + 1 == geometry.num_layers and not is_whole
        count = batch.wanted if is_cut else batch.rows
        yield count, dim
        if batch.is_adapted and adapter:
            yield count, adapter.rank
        for _ in ("MLP", "experts") if geometry.sandwich else ("MLP or experts",):
            yield count, dim
