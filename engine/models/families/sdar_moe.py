"""SDAR with experts: JetLM/SDAR-30B-A3B-Chat (arXiv 2510.06303), and any model in its layout.

Qwen3-MoE's layout with SDAR's attention and blocks. Says how its `config.json` and tensor names map to ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Annotated

from engine.core.config import ModelSpec
from engine.core.ranges import Ge
from engine.models.config_file import Experts, Width
from engine.models.experts import MoEConfig
from engine.models.families import sdar
from engine.models.families.qwen import destinations
from engine.models.layers import TransformerConfig

__all__ = ["ARCHITECTURES", "Config", "destinations"]

ARCHITECTURES: tuple[str, ...] = ("SDARMoeForCausalLM",)


class Config(sdar.Config):
    """SDAR's keys and those of Qwen3-MoE, which say which layers have experts."""

    num_experts: Experts
    num_experts_per_tok: Experts
    moe_intermediate_size: Width
    norm_topk_prob: bool
    decoder_sparse_step: Annotated[int, Ge(1)] = 1
    mlp_only_layers: list[int] = field(default_factory=list)

    @property
    def geometry(self) -> TransformerConfig:
        layers = range(self.num_hidden_layers)
        sparse = {layer for layer in layers if (layer + 1) % self.decoder_sparse_step == 0} - set(self.mlp_only_layers)
        moe = MoEConfig(
            num_experts=self.num_experts,
            experts_per_token=self.num_experts_per_tok,
            ff_dim=self.moe_intermediate_size,
            is_normalised=self.norm_topk_prob,
            dense_layers=frozenset(layers) - sparse,
        )
        return replace(super().geometry, moe=moe)

    def spec(self, special_tokens: Mapping[str, int], generation_eos_ids: Sequence[int] = ()) -> ModelSpec:
        return replace(super().spec(special_tokens, generation_eos_ids), family="sdar_moe")
