"""LLaDA: GSAI-ML/LLaDA-8B-Base, LLaDA-8B-Instruct, LLaDA-1.5 (arXiv 2502.09992) and any model in their layout.

Full attention in both directions, unshifted logits. Says how its `config.json` and tensor names map to ours.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from engine.core.config import ModelSpec
from engine.core.ranges import Ge, Le
from engine.models.config_file import (
    ConfigFile,
    Epsilon,
    Heads,
    Layers,
    Positions,
    Theta,
    TokenId,
    Vocabulary,
    Width,
    divided,
    known_ids,
)
from engine.models.fused import gate_up_destinations, qkv_destinations
from engine.models.layers import TransformerConfig
from engine.models.weights import Destination, Destinations

ARCHITECTURES: tuple[str, ...] = ("LLaDAModelLM",)


class Config(ConfigFile):
    """LLaDA's keys. Keys with a single value are options of OLMo, whose code it inherits: others mean another model."""

    mask_token_id: TokenId
    d_model: Width
    n_layers: Layers
    n_heads: Heads
    n_kv_heads: Heads | None = None
    mlp_hidden_size: Width | None = None
    mlp_ratio: Annotated[int, Ge(1), Le(256)] = 4
    vocab_size: Vocabulary
    embedding_size: Vocabulary | None = None
    max_sequence_length: Positions
    rms_norm_eps: Epsilon = 1e-5
    rope_theta: Theta = 10000.0
    include_qkv_bias: bool | None = None
    weight_tying: bool | None = None

    block_type: Literal["llama"] = "llama"
    layer_norm_type: Literal["rms"] = "rms"
    activation_type: Literal["silu", "swiglu"] = "silu"
    rope: Literal[True] = True
    alibi: Literal[False] = False
    attention_layer_norm: Literal[False] = False
    include_bias: Literal[False] = False
    input_emb_norm: Literal[False] = False
    scale_logits: Literal[False] = False

    @property
    def geometry(self) -> TransformerConfig:
        return TransformerConfig(
            dim=self.d_model,
            num_layers=self.n_layers,
            num_heads=self.n_heads,
            num_kv_heads=self.n_kv_heads or self.n_heads,
            head_dim=divided(self.d_model, self.n_heads),
            ff_dim=self.mlp_hidden_size or self.mlp_ratio * self.d_model,
            vocab_size=self.embedding_size or self.vocab_size,
            max_positions=self.max_sequence_length,
            norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
            qkv_bias=bool(self.include_qkv_bias),
            tied_head=bool(self.weight_tying),
        )

    def spec(self, special_tokens: Mapping[str, int], generation_eos_ids: Sequence[int] = ()) -> ModelSpec:
        """`<|eot_id|>` ends an Instruct answer beside `<|endoftext|>`; only the tokenizer knows its id."""
        ends = known_ids(["<|eot_id|>"], special_tokens)
        return ModelSpec(
            family="llada",
            vocab_size=self.geometry.vocab_size,
            mask_id=self.mask_token_id,
            eos_ids=frozenset(ends | set(self.eos_token_id)),
            max_model_len=self.max_sequence_length,
        )


def destinations(config: TransformerConfig) -> Destinations:
    """Tensor names of the published checkpoints; `ff_proj` is the gate of the SwiGLU."""
    places = {
        "model.transformer.wte.weight": Destination("embed"),
        "model.transformer.ln_f.weight": Destination("norm.weight"),
    }
    if not config.tied_head:
        places["model.transformer.ff_out.weight"] = Destination("head.weight")
    for i in range(config.num_layers):
        theirs, ours = f"model.transformer.blocks.{i}", f"blocks.{i}"
        q, k, v = (f"{theirs}.{name}_proj" for name in "qkv")
        gate, up = f"{theirs}.ff_proj.weight", f"{theirs}.up_proj.weight"
        places |= qkv_destinations(config, q, k, v, f"{ours}.attention.qkv")
        places |= gate_up_destinations(gate, up, f"{ours}.mlp.gate_up.weight", config.ff_dim)
        places |= {
            f"{theirs}.attn_norm.weight": Destination(f"{ours}.attention_norm.weight"),
            f"{theirs}.attn_out.weight": Destination(f"{ours}.attention.out.weight"),
            f"{theirs}.ff_norm.weight": Destination(f"{ours}.mlp_norm.weight"),
            f"{theirs}.ff_out.weight": Destination(f"{ours}.mlp.down.weight"),
        }
    return places
