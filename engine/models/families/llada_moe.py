"""LLaDA with experts: inclusionAI/LLaDA-MoE-7B-A1B-Base and -Instruct (arXiv 2509.24389).

Full attention in both directions, unshifted logits. `model_type` is that of the dense LLaDA; `architectures` tells them
apart. Says how its `config.json` and tensor names map to ours.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from engine.core.config import ModelSpec
from engine.core.ranges import Gt, Le
from engine.models.config_file import (
    ConfigFile,
    Epsilon,
    Experts,
    Heads,
    Layers,
    Positions,
    Theta,
    Vocabulary,
    Width,
    divided,
    known_ids,
    named_token,
)
from engine.models.declared import Contradiction
from engine.models.experts import MoEConfig
from engine.models.families.qwen import destinations
from engine.models.layers import TransformerConfig

__all__ = ["ARCHITECTURES", "Config", "destinations"]

ARCHITECTURES: tuple[str, ...] = ("LLaDAMoEModelLM",)

MASK, TURN_END = "<|mask|>", "<|role_end|>"


class Config(ConfigFile):
    """LLaDA-MoE's keys. Keys with a single value are options that its code has and its checkpoints do not use.

    Its code reads `norm_topk_prob`, `routed_scaling_factor`, `router_num_group`, `router_topk_group` and
    `moe_router_score_function`, and does nothing with them: its router is a softmax that is not normalised.
    """

    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    num_experts: Experts
    num_experts_per_tok: Experts
    expert_intermediate_size: Width
    dense_intermediate_size: Width
    moe_layer_freq: list[Literal[0, 1]]
    vocab_size: Vocabulary
    max_position_embeddings: Positions
    rms_norm_eps: Epsilon = 1e-5
    rope_theta: Theta
    partial_rotary_factor: Annotated[float, Gt(0), Le(1)] = 1.0
    qk_layernorm: bool
    tie_word_embeddings: bool | None = None

    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    clip_qkv: None = None
    rope_scaling: None = None
    shared_expert_intermediate_size: None = None
    moe_router_enable_expert_bias: Literal[False] = False

    @property
    def geometry(self) -> TransformerConfig:
        if len(self.moe_layer_freq) != self.num_hidden_layers:
            raise Contradiction(f"moe_layer_freq has {len(self.moe_layer_freq)} layers of {self.num_hidden_layers}")
        heads = self.num_attention_heads
        head_dim = divided(self.hidden_size, heads)
        return TransformerConfig(
            dim=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=self.num_key_value_heads or heads,
            head_dim=head_dim,
            ff_dim=self.dense_intermediate_size,
            vocab_size=self.vocab_size,
            max_positions=self.max_position_embeddings,
            norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
            qk_norm=self.qk_layernorm,
            tied_head=bool(self.tie_word_embeddings),
            rotary_dim=int(head_dim * self.partial_rotary_factor),
            moe=MoEConfig(
                num_experts=self.num_experts,
                experts_per_token=self.num_experts_per_tok,
                ff_dim=self.expert_intermediate_size,
                dense_layers=frozenset(layer for layer, is_sparse in enumerate(self.moe_layer_freq) if not is_sparse),
            ),
        )

    def spec(self, special_tokens: Mapping[str, int], generation_eos_ids: Sequence[int] = ()) -> ModelSpec:
        """The mask stands in no config file; `<|role_end|>` ends a turn of the chat template beside `<|endoftext|>`.

        Raises LoadError if the tokenizer has no mask.
        """
        turn_end = known_ids([TURN_END], special_tokens)
        return ModelSpec(
            family="llada_moe",
            vocab_size=self.vocab_size,
            mask_id=named_token(MASK, special_tokens),
            eos_ids=frozenset({*self.eos_token_id, *generation_eos_ids, *turn_end}),
            max_model_len=self.max_position_embeddings,
        )
