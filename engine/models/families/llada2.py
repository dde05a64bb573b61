"""LLaDA2.0: inclusionAI/LLaDA2.0-mini and -flash (arXiv 2512.15745), and any model in their layout: 2.1 and 2.2.

Block-causal attention, unshifted logits, half of each head rotated, experts in groups beside a shared one; in LLaDA2.2,
whose tokens can also insert and delete, in pools of a block. Says how its `config.json` and tensor names map to ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Literal

from engine.core.config import ModelSpec
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
    known_ids,
    named_token,
)
from engine.models.declared import LISTED, Contradiction
from engine.models.experts import BlockRouting, MoEConfig
from engine.models.families.qwen import mlp_destinations
from engine.models.layers import TransformerConfig
from engine.models.weights import Destination, Destinations

ARCHITECTURES: tuple[str, ...] = ("LLaDA2MoeModelLM",)

MASK, END, TURN_END = "<|mask|>", "<|endoftext|>", "<|role_end|>"

BLOCK = 32
"""The block that checkpoints were trained with, in tokens: a default of the published sampler, in no config file."""


class Config(ConfigFile):
    """LLaDA2's keys. Keys with a single value are options that its code has and its checkpoints do not use.

    Its code does not read `norm_topk_prob` and `score_function`: scores are sigmoids, and weights normalised.
    """

    eos_token_id: Annotated[list[TokenId], LISTED] = field(default_factory=list)
    """Published files name none."""
    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    head_dim: Width
    intermediate_size: Width
    first_k_dense_replace: Annotated[int, Ge(0)]
    moe_intermediate_size: Width
    num_experts: Experts
    num_experts_per_tok: Experts
    num_shared_experts: Annotated[int, Ge(0), Le(256)] | None = None
    n_group: Experts
    topk_group: Experts
    routed_scaling_factor: Annotated[float, Gt(0)]
    vocab_size: Vocabulary
    max_position_embeddings: Positions
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Theta
    partial_rotary_factor: Annotated[float, Gt(0), Le(1)]
    tie_word_embeddings: bool | None = None

    use_bias: Literal[False]
    """Where it is missing, the published code adds a bias to the attention's output."""
    use_qkv_bias: Literal[False] = False
    use_qk_norm: Literal[True] = True
    hidden_act: Literal["silu"] = "silu"
    rope_scaling: None = None
    use_sliding_window: Literal[False] = False

    expert_capacity: Experts | None = None
    """LLaDA2.2: the experts that tokens of a block choose from. Its code then ignores `n_group` and `topk_group`."""
    block_size: Annotated[int, Ge(1), Le(2**16)] | None = None
    """LLaDA2.2: tokens of such a block. Without `expert_capacity` it has no effect."""
    delete_token_id: TokenId | None = None
    split_token_id: TokenId | None = None

    def __post_init__(self) -> None:
        if self.expert_capacity is not None and self.block_size is None:
            raise Contradiction("expert_capacity is that of a block, and block_size is missing")
        ConfigFile.__post_init__(self)

    @property
    def geometry(self) -> TransformerConfig:
        return TransformerConfig(
            dim=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            ff_dim=self.intermediate_size,
            vocab_size=self.vocab_size,
            max_positions=self.max_position_embeddings,
            norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
            qk_norm=True,
            tied_head=bool(self.tie_word_embeddings),
            rotary_dim=int(self.head_dim * self.partial_rotary_factor),
            moe=MoEConfig(
                num_experts=self.num_experts,
                experts_per_token=self.num_experts_per_tok,
                ff_dim=self.moe_intermediate_size,
                shared_ff_dim=self.moe_intermediate_size * (self.num_shared_experts or 0),
                score="sigmoid",
                has_choice_bias=True,
                num_groups=1 if self._routing else self.n_group,
                groups_per_token=1 if self._routing else self.topk_group,
                block_routing=self._routing,
                is_normalised=self.num_experts_per_tok > 1,  # a single one weighs what its sigmoid says
                scale=self.routed_scaling_factor,
                dense_layers=frozenset(range(min(self.first_k_dense_replace, self.num_hidden_layers))),
            ),
        )

    @property
    def _routing(self) -> BlockRouting | None:
        if self.expert_capacity is None or self.block_size is None:
            return None
        return BlockRouting(self.block_size, self.expert_capacity)

    def spec(self, special_tokens: Mapping[str, int], generation_eos_ids: Sequence[int] = ()) -> ModelSpec:
        """Mask and end stand in no config file; `<|role_end|>` ends a turn of the chat template.

        Raises LoadError if the tokenizer lacks the mask or the end.
        """
        routing = self._routing.length if self._routing else 1
        ends = {named_token(END, special_tokens), *known_ids([TURN_END], special_tokens)}
        return ModelSpec(
            family="llada2_moe",
            vocab_size=self.vocab_size,
            mask_id=named_token(MASK, special_tokens),
            eos_ids=frozenset({*ends, *self.eos_token_id, *generation_eos_ids}),
            max_model_len=self.max_position_embeddings,
            attention="block_causal",
            block_length=min(max(BLOCK // routing, 1) * routing, self.max_position_embeddings),
            routing_block=routing if self._routing else None,
            delete_id=self.delete_token_id,
            split_id=self.split_token_id,
            strict_threshold=True,
        )


def destinations(config: TransformerConfig) -> Destinations:
    """Tensor names of the published checkpoints, in which q, k and v are one tensor as they are here."""
    places = {
        "model.word_embeddings.weight": Destination("embed"),
        "model.norm.weight": Destination("norm.weight"),
    }
    if not config.tied_head:
        places["lm_head.weight"] = Destination("head.weight")
    for layer in range(config.num_layers):
        theirs, ours = f"model.layers.{layer}", f"blocks.{layer}"
        places |= {
            f"{theirs}.input_layernorm.weight": Destination(f"{ours}.attention_norm.weight"),
            f"{theirs}.attention.query_key_value.weight": Destination(f"{ours}.attention.qkv.weight"),
            f"{theirs}.attention.query_layernorm.weight": Destination(f"{ours}.attention.norms.q"),
            f"{theirs}.attention.key_layernorm.weight": Destination(f"{ours}.attention.norms.k"),
            f"{theirs}.attention.dense.weight": Destination(f"{ours}.attention.out.weight"),
            f"{theirs}.post_attention_layernorm.weight": Destination(f"{ours}.mlp_norm.weight"),
            **mlp_destinations(config, layer),
        }
    return places
