"""Dream: Dream-org/Dream-v0-Base-7B and -Instruct-7B (arXiv 2508.15487), Dream-Coder, apple/DiffuCoder-7B.

Qwen2's layout with full attention in both directions. Logits are shifted by one, as in the autoregressive model that
Dream grew from. Says how its `config.json` and tensor names map to ours.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from engine.core.config import ModelSpec
from engine.models.config_file import TokenId, known_ids
from engine.models.families.qwen import QwenConfig, destinations

__all__ = ["ARCHITECTURES", "Config", "destinations"]

ARCHITECTURES: tuple[str, ...] = ("DreamModel",)

_END_TOKENS = ("<|im_end|>", "<|dlm_pad|>")
"""Tokens that end an answer besides the config's: the end of ChatML's turns, and DiffuCoder's padding after them."""


class Config(QwenConfig):
    """Qwen2's keys, and the mask."""

    mask_token_id: TokenId
    attention_bias: Literal[True] = True

    def spec(self, special_tokens: Mapping[str, int], generation_eos_ids: Sequence[int] = ()) -> ModelSpec:
        """`<|im_end|>` ends a chat turn beside `<|endoftext|>`; only the tokenizer knows its id."""
        ends = known_ids(_END_TOKENS, special_tokens)
        return ModelSpec(
            family="Dream",
            vocab_size=self.vocab_size,
            mask_id=self.mask_token_id,
            eos_ids=frozenset(ends | set(self.eos_token_id)),
            max_model_len=self.max_position_embeddings,
            shift=1,
        )
