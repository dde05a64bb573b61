"""A model's geometry for tests that compute with one of their own."""

from engine.cache.policies import CACHES
from engine.models.experts import MoEConfig
from engine.models.layers import TransformerConfig

TOY = TransformerConfig(
    dim=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    ff_dim=384,
    vocab_size=300,
    max_positions=256,
    norm_eps=1e-5,
    rope_theta=1e4,
)
TOY_MOE = MoEConfig(num_experts=16, experts_per_token=4, ff_dim=48)
"""Experts for it."""

FULL_ATTENTION_CACHES = sorted(name for name, policy in CACHES.items() if policy.attention == "full")
"""Cache policies of models that attend in both directions."""
