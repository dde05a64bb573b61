"""Dream: Dream-org/Dream-v0-Base-7B and -Instruct-7B (arXiv 2508.15487), Dream-Coder, apple/DiffuCoder-7B.

Qwen2's layout with full attention in both directions and, as in the autoregressive model it grew from, logits shifted
by one. Says how its `config.json` and tensor names map to ours.
"""

from collections.abc import Mapping
from typing import Any

from engine.config import ModelSpec
from engine.errors import LoadError
from engine.models.layers import TransformerConfig
from engine.models.weights import Destination, Destinations

ARCHITECTURES: tuple[str, ...] = ("DreamModel",)

# Keys whose other values mean another architecture (Qwen2's options, which Dream's code inherits).
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (True,),
    "use_sliding_window": (False,),
    "use_mrope": (False,),
    "rope_scaling": (None,),
}

_END_TOKENS = ("<|im_end|>", "<|dlm_pad|>")
"""End an answer beside the config's own: of ChatML's turns, and DiffuCoder's padding after them."""


def transformer_config(config: Mapping[str, Any]) -> TransformerConfig:
    """The geometry that a `config.json` describes. Raises LoadError on options Dream does not use, KeyError on gaps."""
    for key, allowed in _FIXED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise LoadError(f"config.json: {key} is {config[key]!r}; Dream has {allowed[0]!r}")
    heads = config["num_attention_heads"]
    return TransformerConfig(
        dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        ff_dim=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=config["rope_theta"],
        qkv_bias=True,
        tied_head=bool(config.get("tie_word_embeddings")),
    )


def model_spec(config: Mapping[str, Any], special_tokens: Mapping[str, int]) -> ModelSpec:
    """`<|im_end|>` ends a chat turn beside `<|endoftext|>`; only the tokenizer knows its id."""
    eos = config["eos_token_id"]
    eos_ids = {eos} if isinstance(eos, int) else set(eos)
    return ModelSpec(
        family="Dream",
        vocab_size=config["vocab_size"],
        mask_id=config["mask_token_id"],
        eos_ids=frozenset(eos_ids | {special_tokens[token] for token in _END_TOKENS if token in special_tokens}),
        max_model_len=config["max_position_embeddings"],
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
