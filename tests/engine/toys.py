"""A model's geometry for tests that compute with one of their own."""

from dataclasses import replace

from engine.cache.policies import CACHES
from engine.core.config import ModelSpec
from engine.models.experts import MoEConfig
from engine.models.layers import TransformerConfig
from engine.unmask.policies import UNMASKS

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
_FULL = ModelSpec(family="toy", vocab_size=9, mask_id=8, eos_ids=frozenset(), max_model_len=9)
_BLOCK_CAUSAL = replace(_FULL, attention="block_causal", block_length=4)
FULL_ATTENTION_UNMASKS = sorted(name for name, policy in UNMASKS.items() if policy.fits(_FULL))
"""Unmask policies of such models."""
EVERY_PAIR = [(cache, unmask) for cache in FULL_ATTENTION_CACHES for unmask in FULL_ATTENTION_UNMASKS]
EACH_POLICY = [
    (FULL_ATTENTION_CACHES[number % len(FULL_ATTENTION_CACHES)], unmask)
    for number, unmask in enumerate(FULL_ATTENTION_UNMASKS)
]
"""Each cache and each unmask policy, which know nothing of each other."""
assert len(FULL_ATTENTION_UNMASKS) >= len(FULL_ATTENTION_CACHES)
BLOCK_CAUSAL_UNMASKS = sorted(
    name for name, policy in UNMASKS.items() if policy.fits(_BLOCK_CAUSAL) and not policy.replaces_tokens
)
"""Unmask policies of block-causal models with any cache; those that replace tokens have tests of their own."""
