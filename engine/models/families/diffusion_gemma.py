"""DiffusionGemma 26B-A4B, text only: `DiffusionGemmaForBlockDiffusion`, and any model in its layout.

A context that is read causally; a block of random tokens, its canvas, that sees it and all of itself. No mask. Says how
its `config.json` and tensor names map to ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, ClassVar, Literal

from engine.core.config import ModelSpec
from engine.core.params import MAX_BLOCK
from engine.core.ranges import Ge, Gt, Le
from engine.models.config_file import (
    ConfigFile,
    Epsilon,
    Experts,
    Heads,
    Layers,
    Positions,
    Theta,
    TokenId,
    Vocabulary,
    Width,
)
from engine.models.declared import FILLED, LISTED, Contradiction, Declaration
from engine.models.experts import MoEConfig
from engine.models.layers import TransformerConfig
from engine.models.sandwich import SandwichConfig
from engine.models.weights import Destination, Destinations

ARCHITECTURES: tuple[str, ...] = ("DiffusionGemmaForBlockDiffusion",)

FULL = "full_attention"


class _WindowRope(Declaration):
    rope_type: Literal["default"]
    rope_theta: Theta


class _FullRope(Declaration):
    rope_type: Literal["proportional"]
    rope_theta: Theta
    partial_rotary_factor: Annotated[float, Gt(0), Le(1)]


class _Ropes(Declaration):
    sliding_attention: _WindowRope
    full_attention: _FullRope


class _Text(Declaration):
    """Keys with a single value are options that the published code has and its checkpoints do not use."""

    eos_token_id: Annotated[list[TokenId], LISTED, FILLED]
    hidden_size: Width
    num_hidden_layers: Layers
    layer_types: list[Literal["sliding_attention", "full_attention"]]
    num_attention_heads: Heads
    num_key_value_heads: Heads
    head_dim: Width
    num_global_key_value_heads: Heads
    global_head_dim: Width
    sliding_window: Annotated[int, Ge(2)]
    rope_parameters: _Ropes
    intermediate_size: Width
    num_experts: Experts
    top_k_experts: Experts
    moe_intermediate_size: Width
    vocab_size: Vocabulary
    max_position_embeddings: Positions
    rms_norm_eps: Epsilon = 1e-6
    final_logit_softcapping: Annotated[float, Gt(0)]

    hidden_activation: Literal["gelu_pytorch_tanh"]
    attention_bias: Literal[False] = False
    tie_word_embeddings: Literal[True] = True
    use_bidirectional_attention: Literal["vision"] | None = None
    """Of tokens of images, of which there are none."""
    per_layer_config: None = None
    """What newer files have in place of `global_head_dim` and `num_global_key_value_heads`."""
    rope_scaling: None = None


class Config(ConfigFile):
    """The keys of text generation, most of them under `text_config`."""

    UNUSED: ClassVar[tuple[str, ...]] = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")

    eos_token_id: Annotated[list[TokenId], LISTED] = field(default_factory=list)
    canvas_length: Annotated[int, Ge(1), Le(MAX_BLOCK)]
    text_config: _Text
    tie_word_embeddings: Literal[True] = True

    @property
    def geometry(self) -> TransformerConfig:
        text = self.text_config
        if len(text.layer_types) != text.num_hidden_layers:
            raise Contradiction(f"layer_types names {len(text.layer_types)} layers of {text.num_hidden_layers}")
        full = text.rope_parameters.full_attention
        return TransformerConfig(
            dim=text.hidden_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            ff_dim=text.intermediate_size,
            vocab_size=text.vocab_size,
            max_positions=text.max_position_embeddings,
            norm_eps=text.rms_norm_eps,
            rope_theta=text.rope_parameters.sliding_attention.rope_theta,
            qk_norm=True,
            tied_head=True,
            moe=MoEConfig(
                num_experts=text.num_experts,
                experts_per_token=text.top_k_experts,
                ff_dim=text.moe_intermediate_size,
                is_normalised=True,
                activation="gelu_tanh",
                router_norm_eps=text.rms_norm_eps,
            ),
            sandwich=SandwichConfig(
                window=text.sliding_window,
                full_layers=frozenset(layer for layer, kind in enumerate(text.layer_types) if kind == FULL),
                full_kv_heads=text.num_global_key_value_heads,
                full_head_dim=text.global_head_dim,
                full_rope_theta=full.rope_theta,
                full_rotated_pairs=int(full.partial_rotary_factor * text.global_head_dim // 2),
                softcap=text.final_logit_softcapping,
            ),
        )

    def spec(self, special_tokens: Mapping[str, int], generation_eos_ids: Sequence[int] = ()) -> ModelSpec:
        """`generation_config.json` has the ends of an answer, also of a turn; `config.json` has one of them."""
        text = self.text_config
        return ModelSpec(
            family="diffusion_gemma",
            vocab_size=text.vocab_size,
            mask_id=None,
            eos_ids=frozenset(generation_eos_ids or self.eos_token_id or text.eos_token_id),
            max_model_len=text.max_position_embeddings,
            attention="block_causal",
            block_length=min(self.canvas_length, text.max_position_embeddings),
            commit="causal",
            window=text.sliding_window,
        )


_SAME = {
    "input_layernorm.weight": "attention_norm.weight",
    "self_attn.q_norm.weight": "attention.q_norm",
    "self_attn.k_norm.weight": "attention.k_norm",
    "self_attn.o_proj.weight": "attention.out.weight",
    "post_attention_layernorm.weight": "after_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "mlp_norm.weight",
    "post_feedforward_layernorm_1.weight": "after_mlp_norm.weight",
    "pre_feedforward_layernorm_2.weight": "experts_norm.weight",
    "post_feedforward_layernorm_2.weight": "after_experts_norm.weight",
    "post_feedforward_layernorm.weight": "last_norm.weight",
    "mlp.down_proj.weight": "mlp.down.weight",
    "router.proj.weight": "moe.router.logits.weight",
    "router.scale": "moe.router.scale",
    "router.per_expert_scale": "moe.router.expert_scale",
    "experts.gate_up_proj": "moe.experts.gate_up",
    "experts.down_proj": "moe.experts.down",
}
"""A layer's tensors that are one parameter here: their name -> ours."""


def destinations(config: TransformerConfig) -> Destinations:
    """Tensor names of the published checkpoints. The encoder's weights are the decoder's but for its scalars."""
    ff, theirs = config.ff_dim, "model.decoder.self_conditioning"
    places = {
        "model.decoder.embed_tokens.weight": Destination("embed"),
        "model.decoder.norm.weight": Destination("norm.weight"),
        f"{theirs}.pre_norm.weight": Destination("conditioning.norm.weight"),
        f"{theirs}.gate_proj.weight": Destination("conditioning.mlp.gate_up.weight", 0, ff),
        f"{theirs}.up_proj.weight": Destination("conditioning.mlp.gate_up.weight", ff, ff),
        f"{theirs}.down_proj.weight": Destination("conditioning.mlp.down.weight"),
    }
    for layer in range(config.num_layers):
        theirs, ours = f"model.decoder.layers.{layer}", f"blocks.{layer}"
        heads = config.heads_of(layer)
        q, kv = config.num_heads * heads.head_dim, heads.kv_heads * heads.head_dim
        qkv, gate_up = f"{ours}.attention.qkv.weight", f"{ours}.mlp.gate_up.weight"
        places |= {f"{theirs}.{name}": Destination(f"{ours}.{own}") for name, own in _SAME.items()}
        places |= {
            f"{theirs}.self_attn.q_proj.weight": Destination(qkv, 0, q),
            f"{theirs}.self_attn.k_proj.weight": Destination(qkv, q, kv),
            f"{theirs}.mlp.gate_proj.weight": Destination(gate_up, 0, ff),
            f"{theirs}.mlp.up_proj.weight": Destination(gate_up, ff, ff),
            f"model.encoder.language_model.layers.{layer}.layer_scalar": Destination(f"{ours}.scalars", 0, 1),
            f"{theirs}.layer_scalar": Destination(f"{ours}.scalars", 1, 1),
        }
        if heads.projected == 2:
            places[f"{theirs}.self_attn.v_proj.weight"] = Destination(qkv, q + kv, kv)
    return places
