"""SDAR, dense: JetLM/SDAR-1.7B-Chat, -4B-Chat and -8B-Chat (arXiv 2510.06303), with blocks of 4 to 64 tokens.

Qwen3's layout with block-causal attention, unshifted logits. Says how its `config.json` and tensor names map to ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from engine.core.config import ModelSpec
from engine.core.params import MAX_BLOCK
from engine.core.ranges import Ge, Le
from engine.models.config_file import TokenId
from engine.models.families.qwen import QwenConfig, destinations
from engine.models.layers import TransformerConfig

__all__ = ["ARCHITECTURES", "Config", "destinations"]

ARCHITECTURES: tuple[str, ...] = ("SDARForCausalLM",)


class Config(QwenConfig):
    """Qwen3's keys, the mask and the block."""

    mask_token_id: TokenId
    block_size: Annotated[int, Ge(1), Le(MAX_BLOCK)]
    attention_bias: Literal[False] = False

    @property
    def geometry(self) -> TransformerConfig:
        return replace(super().geometry, qkv_bias=False, qk_norm=True)

    def spec(self, special_tokens: Mapping[str, int], generation_eos_ids: Sequence[int] = ()) -> ModelSpec:
        """`generation_config.json` has the ends of an answer; `config.json` names `<|endoftext|>` alone."""
        return ModelSpec(
            family="sdar",
            vocab_size=self.vocab_size,
            mask_id=self.mask_token_id,
            eos_ids=frozenset(generation_eos_ids or self.eos_token_id),
            max_model_len=self.max_position_embeddings,
            attention="block_causal",
            block_length=self.block_size,
            strict_threshold=True,
        )
