"""Dream: Dream-org/Dream-v0-Base-7B and -Instruct-7B (arXiv 2508.15487), Dream-Coder, apple/DiffuCoder-7B.

Qwen2's layout with full attention in both directions. Logits are shifted by one, as in the autoregressive model that
Dream grew from. Says how its `config.json` and tensor names map to ours.
"""

from collections.abc import Mapping
from typing import Literal

from engine.core.config import ModelSpec
from engine.models.config_file import (
    ConfigFile,
    Epsilon,
    Heads,
    Layers,
    Positions,
    Theta,
    Vocabulary,
    Width,
    divided,
)
from engine.models.layers import TransformerConfig
from engine.models.weights import Destination, Destinations

ARCHITECTURES: tuple[str, ...] = ("DreamModel",)

_END_TOKENS = ("<|im_end|>", "<|dlm_pad|>")
"""Tokens that end an answer besides the config's: the end of ChatML's turns, and DiffuCoder's padding after them."""


class Config(ConfigFile):
    """Qwen2's keys. Keys with a single value are options that Dream does not vary: others mean another model."""

    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    head_dim: Width | None = None
    intermediate_size: Width
    vocab_size: Vocabulary
    max_position_embeddings: Positions
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Theta
    tie_word_embeddings: bool | None = None

    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[True] = True
    use_sliding_window: Literal[False] = False
    use_mrope: Literal[False] = False
    rope_scaling: None = None

    @property
    def geometry(self) -> TransformerConfig:
        heads = self.num_attention_heads
        return TransformerConfig(
            dim=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=self.num_key_value_heads or heads,
            head_dim=self.head_dim or divided(self.hidden_size, heads),
            ff_dim=self.intermediate_size,
            vocab_size=self.vocab_size,
            max_positions=self.max_position_embeddings,
            norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
            qkv_bias=True,
            tied_head=bool(self.tie_word_embeddings),
        )

    def spec(self, special_tokens: Mapping[str, int]) -> ModelSpec:
        """`<|im_end|>` ends a chat turn beside `<|endoftext|>`; only the tokenizer knows its id."""
        ends = {special_tokens[token] for token in _END_TOKENS if token in special_tokens}
        return ModelSpec(
            family="Dream",
            vocab_size=self.vocab_size,
            mask_id=self.mask_token_id,
            eos_ids=frozenset(ends | set(self.eos_token_id)),
            max_model_len=self.max_position_embeddings,
            shift=1,
        )


def destinations(config: TransformerConfig) -> Destinations:
    """Qwen2's tensor names."""
    q, kv, ff = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.ff_dim
    places = {
        "model.embed_tokens.weight": Destination("embed"),
        "model.norm.weight": Destination("norm.weight"),
    }
    if not config.tied_head:
        places["lm_head.weight"] = Destination("head.weight")
    for i in range(config.num_layers):
        theirs, ours = f"model.layers.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            places |= {
                f"{theirs}.self_attn.q_proj.{kind}": Destination(f"{ours}.attention.qkv.{kind}", 0, q),
                f"{theirs}.self_attn.k_proj.{kind}": Destination(f"{ours}.attention.qkv.{kind}", q, kv),
                f"{theirs}.self_attn.v_proj.{kind}": Destination(f"{ours}.attention.qkv.{kind}", q + kv, kv),
            }
        places |= {
            f"{theirs}.input_layernorm.weight": Destination(f"{ours}.attention_norm.weight"),
            f"{theirs}.self_attn.o_proj.weight": Destination(f"{ours}.attention.out.weight"),
            f"{theirs}.post_attention_layernorm.weight": Destination(f"{ours}.mlp_norm.weight"),
            f"{theirs}.mlp.gate_proj.weight": Destination(f"{ours}.mlp.gate_up.weight", 0, ff),
            f"{theirs}.mlp.up_proj.weight": Destination(f"{ours}.mlp.gate_up.weight", ff, ff),
            f"{theirs}.mlp.down_proj.weight": Destination(f"{ours}.mlp.down.weight"),
        }
    return places
