"""LLaDA: GSAI-ML/LLaDA-8B-Base, LLaDA-8B-Instruct, LLaDA-1.5 (arXiv 2502.09992) and any model in their layout.

Full attention in both directions, unshifted logits. Says how its `config.json` and tensor names map to ours.
"""

from collections.abc import Mapping
from typing import Any

from engine.config import ModelSpec
from engine.errors import LoadError
from engine.models.layers import TransformerConfig
from engine.models.weights import Destination, Destinations

ARCHITECTURES: tuple[str, ...] = ("LLaDAModelLM",)

# Keys whose other values mean another architecture (OLMo's options, which LLaDA's code inherits).
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "activation_type": ("silu", "swiglu"),
    "rope": (True,),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "include_bias": (False,),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
}


def transformer_config(config: Mapping[str, Any]) -> TransformerConfig:
    """The geometry that a `config.json` describes. Raises LoadError on options LLaDA does not use, KeyError on gaps."""
    for key, allowed in _FIXED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise LoadError(f"config.json: {key} is {config[key]!r}; LLaDA has {allowed[0]!r}")
    heads = config["n_heads"]
    return TransformerConfig(
        dim=config["d_model"],
        num_layers=config["n_layers"],
        num_heads=heads,
        num_kv_heads=config.get("n_kv_heads") or heads,
        head_dim=config["d_model"] // heads,
        ff_dim=config.get("mlp_hidden_size") or config["mlp_ratio"] * config["d_model"],
        vocab_size=config.get("embedding_size") or config["vocab_size"],
        max_positions=config["max_sequence_length"],
        norm_eps=config.get("rms_norm_eps", 1e-5),
        rope_theta=config.get("rope_theta", 10000.0),
        qkv_bias=bool(config.get("include_qkv_bias")),
        tied_head=bool(config.get("weight_tying")),
    )


def model_spec(config: Mapping[str, Any], special_tokens: Mapping[str, int]) -> ModelSpec:
    """`<|eot_id|>` ends an Instruct answer beside `<|endoftext|>`; only the tokenizer knows its id."""
    eos = config["eos_token_id"]
    eos_ids = {eos} if isinstance(eos, int) else set(eos)
    if "<|eot_id|>" in special_tokens:
        eos_ids.add(special_tokens["<|eot_id|>"])
    return ModelSpec(
        family="llada",
        vocab_size=config.get("embedding_size") or config["vocab_size"],
        mask_id=config["mask_token_id"],
        eos_ids=frozenset(eos_ids),
        max_model_len=config["max_sequence_length"],
    )


def destinations(config: TransformerConfig) -> Destinations:
    """Tensor names of the published checkpoints; `ff_proj` is the gate of the SwiGLU."""
    q, kv, ff = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.ff_dim
    places = {
        "model.transformer.wte.weight": Destination("embed"),
        "model.transformer.ln_f.weight": Destination("norm.weight"),
    }
    if not config.tied_head:
        places["model.transformer.ff_out.weight"] = Destination("head.weight")
    kinds = ("weight", "bias") if config.qkv_bias else ("weight",)
    for i in range(config.num_layers):
        theirs, ours = f"model.transformer.blocks.{i}", f"blocks.{i}"
        for kind in kinds:
            places[f"{theirs}.q_proj.{kind}"] = Destination(f"{ours}.attention.qkv.{kind}", 0, q)
            places[f"{theirs}.k_proj.{kind}"] = Destination(f"{ours}.attention.qkv.{kind}", q, kv)
            places[f"{theirs}.v_proj.{kind}"] = Destination(f"{ours}.attention.qkv.{kind}", q + kv, kv)
        places |= {
            f"{theirs}.attn_norm.weight": Destination(f"{ours}.attention_norm.weight"),
            f"{theirs}.attn_out.weight": Destination(f"{ours}.attention.out.weight"),
            f"{theirs}.ff_norm.weight": Destination(f"{ours}.mlp_norm.weight"),
            f"{theirs}.ff_proj.weight": Destination(f"{ours}.mlp.gate_up.weight", 0, ff),
            f"{theirs}.up_proj.weight": Destination(f"{ours}.mlp.gate_up.weight", ff, ff),
            f"{theirs}.ff_out.weight": Destination(f"{ours}.mlp.down.weight"),
        }
    return places
