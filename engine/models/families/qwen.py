"""What checkpoints in Qwen's layout share: keys of Qwen2's and Qwen3's `config.json`, and tensor names.

Families that grew from Qwen add what they alone have, and others use some of its names. Knows no family.
"""

from typing import Literal

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
from engine.models.fused import gate_up_destinations, qkv_destinations
from engine.models.layers import TransformerConfig
from engine.models.weights import Destination, Destinations


class QwenConfig(ConfigFile):
    """Keys with a single value are options that no family here varies: others mean another model."""

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
    use_sliding_window: Literal[False] = False
    use_mrope: Literal[False] = False
    layer_types: list[Literal["full_attention"]] | None = None
    rope_scaling: None = None

    @property
    def geometry(self) -> TransformerConfig:
        """As Qwen2's; a family in Qwen3's layout replaces `qkv_bias` and `qk_norm`."""
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


def destinations(config: TransformerConfig) -> Destinations:
    """Tensor names of Qwen2, with biases of q, k and v, and of Qwen3, with norms of q and k instead, or experts."""
    places = {
        "model.embed_tokens.weight": Destination("embed"),
        "model.norm.weight": Destination("norm.weight"),
    }
    if not config.tied_head:
        places["lm_head.weight"] = Destination("head.weight")
    for i in range(config.num_layers):
        theirs, ours = f"model.layers.{i}", f"blocks.{i}"
        q, k, v = (f"{theirs}.self_attn.{name}_proj" for name in "qkv")
        places |= qkv_destinations(config, q, k, v, f"{ours}.attention.qkv")
        if config.qk_norm:
            places |= {
                f"{theirs}.self_attn.q_norm.weight": Destination(f"{ours}.attention.norms.q"),
                f"{theirs}.self_attn.k_norm.weight": Destination(f"{ours}.attention.norms.k"),
            }
        places |= {
            f"{theirs}.input_layernorm.weight": Destination(f"{ours}.attention_norm.weight"),
            f"{theirs}.self_attn.o_proj.weight": Destination(f"{ours}.attention.out.weight"),
            f"{theirs}.post_attention_layernorm.weight": Destination(f"{ours}.mlp_norm.weight"),
            **mlp_destinations(config, i),
        }
    return places


def mlp_destinations(config: TransformerConfig, layer: int) -> Destinations:
    """One layer's MLP, or its router, experts and the MLP that all rows share."""
    theirs, ours, moe = f"model.layers.{layer}.mlp", f"blocks.{layer}.mlp", config.moe
    if moe is None or not config.has_experts(layer):
        return _swiglu(theirs, f"{ours}.gate_up.weight", f"{ours}.down.weight", config.ff_dim)
    places = {f"{theirs}.gate.weight": Destination(f"{ours}.router.logits.weight")}
    if moe.has_choice_bias:
        places[f"{theirs}.gate.expert_bias"] = Destination(f"{ours}.router.bias")
    for expert in range(moe.num_experts):
        stacked = f"{ours}.experts.gate_up", f"{ours}.experts.down"
        places |= _swiglu(f"{theirs}.experts.{expert}", *stacked, moe.ff_dim, expert)
    if moe.shared_ff_dim:
        own = f"{ours}.shared.gate_up.weight", f"{ours}.shared.down.weight"
        places |= _swiglu(f"{theirs}.shared_experts", *own, moe.shared_ff_dim)
    return places


def _swiglu(theirs: str, gate_up: str, down: str, ff: int, expert: int | None = None) -> dict[str, Destination]:
    gate, up = f"{theirs}.gate_proj.weight", f"{theirs}.up_proj.weight"
    return {
        **gate_up_destinations(gate, up, gate_up, ff, expert),
        f"{theirs}.down_proj.weight": Destination(down, expert=expert),
    }
