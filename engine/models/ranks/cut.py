"""Which part of each weight a rank holds: attention by heads, MLPs and experts by width, the vocabulary by tokens.

All of it is data: a geometry and a parameter's name say how it is cut, for any family. What is not named here is whole
on every rank. Source: Megatron-LM (arXiv 1909.08053).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from engine.core.errors import ConfigError
from engine.models.layers import TransformerConfig


@dataclass(frozen=True, slots=True)
class Rank:
    """One of several processes that compute one model together."""

    number: int
    """From 0 on."""
    size: int
    """How many there are."""

    def geometry(self, whole: TransformerConfig) -> TransformerConfig:
        """The sizes of a rank's part of a model; all ranks' are alike."""
        moe, sandwich = whole.moe, whole.sandwich
        return replace(
            whole,
            num_heads=whole.num_heads // self.size,
            num_kv_heads=max(whole.num_kv_heads // self.size, 1),
            ff_dim=whole.ff_dim // self.size,
            vocab_size=whole.vocab_size // self.size,
            moe=moe and replace(moe, ff_dim=moe.ff_dim // self.size, shared_ff_dim=moe.shared_ff_dim // self.size),
            sandwich=sandwich and replace(sandwich, full_kv_heads=max(sandwich.full_kv_heads // self.size, 1)),
        )

    def tokens(self, vocab_size: int) -> range:
        """The part of the vocabulary whose embeddings and logits are this rank's."""
        part = vocab_size // self.size
        return range(self.number * part, (self.number + 1) * part)


class Section(NamedTuple):
    """Neighbouring rows or columns of a weight that are cut into parts of one size."""

    length: int
    parts: int
    """As many as there are ranks, or fewer: then neighbouring ranks hold the same one."""


class Piece(NamedTuple):
    """`width` rows or columns of a checkpoint's tensor, and where they go in a rank's parameter."""

    source: int
    target: int
    width: int


@dataclass(frozen=True, slots=True)
class Cut:
    """How a parameter is cut along one dimension."""

    dim: int
    """Counted from the last one: -1 are columns, inputs of a product; -2 are rows, its outputs."""
    sections: tuple[Section, ...]

    def pieces(self, rank: Rank, start: int, length: int) -> Iterator[Piece]:
        """What the rank holds of a tensor that is [start, start + length) of the whole parameter."""
        begin = target = 0
        for section in self.sections:
            width = section.length // section.parts
            first = begin + rank.number * section.parts // rank.size * width
            low, high = max(first, start), min(first + width, start + length)
            if low < high:
                yield Piece(low - start, target + low - first, high - low)
            begin += section.length
            target += width


def cut_of(parameter: str, whole: TransformerConfig, size: int) -> Cut | None:
    """How a parameter of a model with this geometry is cut for so many ranks; None is whole on each."""
    match = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)", parameter)
    assert match is not None
    name = match[2]
    heads = whole.heads_of(int(match[1] or 0))
    attended, experts_width = whole.num_heads * heads.head_dim, whole.moe.ff_dim if whole.moe else 0

    def cut(dim: int, *lengths: int) -> Cut:
        return Cut(dim, tuple(Section(length, size) for length in lengths))

    match name:
        case "embed" | "head.weight":
            return cut(-2, whole.vocab_size)
        case "attention.qkv.weight" | "attention.qkv.bias":
            kv = Section(heads.kv_heads * heads.head_dim, min(size, heads.kv_heads))
            return Cut(-2 if name.endswith("weight") else -1, (Section(attended, size), *[kv] * heads.projected))
        case "attention.out.weight" | "attention.adapter.down.weight":
            return cut(-1, attended)
        case "mlp.gate_up.weight" | "conditioning.mlp.gate_up.weight":
            return cut(-2, whole.ff_dim, whole.ff_dim)
        case "mlp.down.weight" | "conditioning.mlp.down.weight":
            return cut(-1, whole.ff_dim)
        case "mlp.shared.gate_up.weight" | "mlp.shared.down.weight":
            width = whole.moe.shared_ff_dim if whole.moe else 0
            return cut(-1, width) if "down" in name else cut(-2, width, width)
        case "mlp.experts.gate_up" | "moe.experts.gate_up":
            return cut(-2, experts_width, experts_width)
        case "mlp.experts.down" | "moe.experts.down":
            return cut(-1, experts_width)
    return None


def check_divides(whole: TransformerConfig, size: int) -> None:
    """Raises ConfigError, with the sizes' names, if a model cannot be cut for so many ranks."""
    moe = whole.moe
    sizes = {"attention heads": whole.num_heads, "tokens of the vocabulary": whole.vocab_size}
    if whole.sandwich or whole.num_moe_layers < whole.num_layers:
        sizes["numbers of an MLP's width"] = whole.ff_dim
    if moe and whole.num_moe_layers:
        sizes["numbers of an expert's width"] = moe.ff_dim
        sizes["numbers of the shared MLP's width"] = moe.shared_ff_dim
    wrong = [f"{count:,} {name}" for name, count in sizes.items() if count % size]
    kv_heads = sorted({whole.heads_of(layer).kv_heads for layer in range(whole.num_layers)})
    wrong += [f"{count} heads of keys and values" for count in kv_heads if count % size and size % count]
    if wrong:
        raise ConfigError(f"tensor_parallel_size is {size}, which does not divide the model: it has {', '.join(wrong)}")
