"""What a checkpoint's `config.json` may say: declarations that families share.

A family declares keys, types and ranges; a config that passes can be computed with, and no later code checks it again.
Knows no family, and only the contents of files.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, ClassVar

from engine.core.config import ModelSpec
from engine.core.errors import LoadError
from engine.core.ranges import Ge, Gt, Le
from engine.models.declared import FILLED, LISTED, Contradiction, Declaration
from engine.models.experts import MoEConfig
from engine.models.layers import TransformerConfig

Layers = Annotated[int, Ge(1), Le(256)]
Heads = Annotated[int, Ge(1), Le(4096)]
Experts = Annotated[int, Ge(1), Le(4096)]
Width = Annotated[int, Ge(1), Le(2**20)]
"""Numbers of a hidden row, or of a row within an MLP."""
Vocabulary = Annotated[int, Ge(2), Le(2**24)]
Positions = Annotated[int, Ge(1), Le(2**21)]
"""Each position has a row in the rotary table."""
TokenId = Annotated[int, Ge(0)]
Epsilon = Annotated[float, Ge(0), Le(1)]
Theta = Annotated[float, Gt(0)]


class ConfigFile(Declaration, ABC):
    """What all families' `config.json` have."""

    draft_adapter: ClassVar[str | None] = None
    """The subfolder with an adapter that drafts may go through, in checkpoints that have it."""
    UNUSED: ClassVar[tuple[str, ...]] = ()
    """What names of tensors begin with that text generation does not use."""

    eos_token_id: Annotated[list[TokenId], LISTED, FILLED]
    """One or several, as in transformers."""

    @property
    @abstractmethod
    def geometry(self) -> TransformerConfig:
        """The sizes of the transformer."""

    @abstractmethod
    def spec(self, special_tokens: Mapping[str, int], generation_eos_ids: Sequence[int] = ()) -> ModelSpec:
        """What decoding needs to know, by files beside `config.json` too, in which some token ids stand alone.

        `special_tokens` are the tokenizer's, text -> id; `generation_eos_ids` those that end an answer by
        `generation_config.json`. Raises LoadError if these lack a token that the family needs.
        """

    def __post_init__(self) -> None:
        geometry = self.geometry
        for kv_heads, head_dim, _ in {geometry.heads_of(layer) for layer in range(geometry.num_layers)}:
            if geometry.num_heads % kv_heads:
                raise Contradiction(f"{geometry.num_heads} heads cannot share {kv_heads} of keys and values")
            if head_dim < 2 or head_dim % 2:
                raise Contradiction(f"heads have {head_dim} numbers; rotation needs an even number of them")
        if geometry.rotary_dim is not None and (geometry.rotary_dim < 2 or geometry.rotary_dim % 2):
            raise Contradiction(
                f"{geometry.rotary_dim} numbers of a head are rotated; it must be an even number of them"
            )
        if geometry.moe is not None:
            _check_experts(geometry.moe)


def _check_experts(moe: MoEConfig) -> None:
    if moe.num_experts % moe.num_groups:
        raise Contradiction(f"{moe.num_experts} experts cannot be in {moe.num_groups} groups of one size")
    if moe.groups_per_token > moe.num_groups:
        raise Contradiction(f"experts are of {moe.groups_per_token} groups; there are {moe.num_groups}")
    available = moe.num_experts // moe.num_groups * moe.groups_per_token
    if moe.block_routing:
        if moe.block_routing.pool_size > available:
            raise Contradiction(f"a block has {moe.block_routing.pool_size} experts of {available}")
        available = moe.block_routing.pool_size
    if moe.experts_per_token > available:
        raise Contradiction(f"each token has {moe.experts_per_token} experts of {available}")


def named_token(text: str, special_tokens: Mapping[str, int]) -> int:
    """The id of a token that only the tokenizer knows. Raises LoadError if it has none of this name."""
    if text not in special_tokens:
        raise LoadError(f"the tokenizer lacks {text!r}, whose id stands in no config file")
    return special_tokens[text]


def known_ids(texts: Iterable[str], special_tokens: Mapping[str, int]) -> set[int]:
    """The ids of those texts that the tokenizer has as tokens."""
    return {special_tokens[text] for text in texts if text in special_tokens}


def divided(width: int, heads: int) -> int:
    """Numbers of one head. Only for use in declarations, where `Declaration.read` turns its error into LoadError."""
    if width % heads:
        raise Contradiction(f"{heads} heads cannot share a row of {width} numbers")
    return width // heads
