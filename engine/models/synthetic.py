"""Models with random weights, named in LLaDA's keys, for measuring: they decode nonsense, as fast as trained models."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from engine.core.config import ModelSpec
from engine.models import new_model
from engine.models.experts import MoEConfig
from engine.models.families import llada
from engine.models.layers import Transformer, TransformerConfig

SIZES: Mapping[str, Mapping[str, int]] = {
    "small": {"d_model": 512, "n_layers": 8, "n_heads": 8, "mlp_hidden_size": 1536, "vocab_size": 4096},
    "wide": {"d_model": 128, "n_layers": 4, "n_heads": 4, "mlp_hidden_size": 344, "vocab_size": 126_464},
    "tiny": {"d_model": 64, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 192, "vocab_size": 256},
    "llada-8b": {"d_model": 4096, "n_layers": 32, "n_heads": 32, "mlp_hidden_size": 12288, "vocab_size": 126464},
    "dream-7b": {
        "d_model": 3584,
        "n_layers": 28,
        "n_heads": 28,
        "n_kv_heads": 4,
        "mlp_hidden_size": 18944,
        "vocab_size": 152064,
        "include_qkv_bias": True,
    },
    "sdar-8b": {
        "d_model": 4096,
        "n_layers": 36,
        "n_heads": 32,
        "n_kv_heads": 8,
        "mlp_hidden_size": 12288,
        "vocab_size": 151936,
    },
    "sdar-30b-a3b": {
        "d_model": 2048,
        "n_layers": 48,
        "n_heads": 32,
        "n_kv_heads": 4,
        "mlp_hidden_size": 6144,
        "vocab_size": 151936,
    },
    "llada2-flash": {
        "d_model": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 4,
        "mlp_hidden_size": 9216,
        "vocab_size": 157184,
    },
    "llada-moe-7b": {"d_model": 2048, "n_layers": 16, "n_heads": 16, "mlp_hidden_size": 8192, "vocab_size": 157184},
    "small-moe": {"d_model": 512, "n_layers": 8, "n_heads": 8, "mlp_hidden_size": 1536, "vocab_size": 4096},
}
"""Geometries in LLaDA's keys of `config.json`.

`small` (31 M parameters) and `tiny` (0.1 M, for tests) have LLaDA-8B's proportions. `wide` has LLaDA-8B's vocabulary on
a thin body: 33 M parameters, of which 32 M are embedding and head, and most of its steps. `small-moe` is `small` with
32 experts, of which each row goes through four, together as wide as its MLP. Of SDAR-8B- and -30B-A3B-Chat, whose
layouts are Qwen3's, and of LLaDA2.0-flash attention is full.
"""
MOES: Mapping[str, MoEConfig] = {
    "sdar-30b-a3b": MoEConfig(num_experts=128, experts_per_token=8, ff_dim=768, is_normalised=True),
    "llada2-flash": MoEConfig(
        num_experts=256,
        experts_per_token=8,
        ff_dim=1024,
        shared_ff_dim=1024,
        score="sigmoid",
        has_choice_bias=True,
        num_groups=8,
        groups_per_token=4,
        is_normalised=True,
        scale=2.5,
        dense_layers=frozenset({0}),
    ),
    "llada-moe-7b": MoEConfig(num_experts=64, experts_per_token=8, ff_dim=1024),
    "small-moe": MoEConfig(num_experts=32, experts_per_token=4, ff_dim=384, is_normalised=True),
}
"""The experts of sizes that have them, which LLaDA's keys cannot say."""
HEAD_DIMS: Mapping[str, int] = {"sdar-30b-a3b": 128}
"""Numbers of a head where heads are wider than their share of a row."""
SHIFTS: Mapping[str, int] = {"dream-7b": 1}
"""`ModelSpec.shift` where it is not 0."""
QK_NORMS = frozenset({"sdar-8b", "sdar-30b-a3b", "llada2-flash", "llada-moe-7b"})
"""Sizes whose layers norm queries and keys, which LLaDA's keys cannot say."""
TRAINED_BLOCKS: Mapping[str, int] = {"sdar-8b": 4, "sdar-30b-a3b": 4, "llada2-flash": 32}
"""The block, in tokens, of sizes whose published models are block-causal."""


def config_of(sizes: Mapping[str, int], max_model_len: int) -> llada.Config:
    """What a `config.json` of these sizes would say; its last tokens are the special ones."""
    special = {"mask_token_id": sizes["vocab_size"] - 1, "eos_token_id": sizes["vocab_size"] - 2}
    return llada.Config.read({**sizes, **special, "max_sequence_length": max_model_len})


def geometry_named(size: str, max_model_len: int) -> TransformerConfig:
    """The geometry of a name in `SIZES`."""
    geometry = config_of(SIZES[size], max_model_len).geometry
    head_dim = HEAD_DIMS.get(size, geometry.head_dim)
    return replace(geometry, qk_norm=size in QK_NORMS, head_dim=head_dim, moe=MOES.get(size))


def random_model(
    size: str, max_model_len: int, dtype: torch.dtype, device: torch.device
) -> tuple[Transformer, ModelSpec]:
    """The same weights every time, scaled so that hidden states stay finite from layer to layer."""
    config = config_of(SIZES[size], max_model_len)
    model = new_model(geometry_named(size, max_model_len), dtype, device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
    return model, replace(config.spec({}), shift=SHIFTS.get(size, 0))
