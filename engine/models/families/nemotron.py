"""Nemotron-Labs-Diffusion: nvidia/Nemotron-Labs-Diffusion-3B, -8B and -14B, instruct and Base.

Ministral 3's layout (Llama's, with YaRN and scaled queries), trained to fill blocks and to say the next token with the
same weights: the open block's rows see all of it, and finished rows are causal. Logits of the open block are unshifted.
Says how its `config.json` and tensor names map to ours.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from engine.core.config import ModelSpec
from engine.core.params import MAX_BLOCK
from engine.core.ranges import Ge, Gt, Le
from engine.models.config_file import ConfigFile, Epsilon, Heads, Layers, Positions, TokenId, Vocabulary, Width
from engine.models.declared import Declaration
from engine.models.families import qwen
from engine.models.layers import TransformerConfig
from engine.models.rotary import QueryScaling, Yarn
from engine.models.weights import Destination, Destinations

ARCHITECTURES: tuple[str, ...] = ("NemotronLabsDiffusionModel",)

ADAPTER = "linear_spec_lora"

Scale = Annotated[float, Gt(0)]


class RopeParameters(Declaration):
    """How positions are rotated, and how queries grow behind the original positions."""

    rope_type: Literal["yarn"]
    rope_theta: Annotated[float, Gt(1)]
    factor: Scale
    original_max_position_embeddings: Positions
    beta_fast: Scale = 32.0
    beta_slow: Scale = 1.0
    mscale: Annotated[float, Ge(0)]
    mscale_all_dim: Annotated[float, Ge(0)]
    llama_4_scaling_beta: Annotated[float, Ge(0)]


class Config(ConfigFile):
    """Its keys. Keys with a single value are options that no checkpoint varies: others mean another model.

    `dlm_paradigm` is not read: it says how the weights were trained, not how they are used.
    """

    draft_adapter = ADAPTER

    mask_token_id: TokenId
    block_size: Annotated[int, Ge(1), Le(MAX_BLOCK)]
    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    head_dim: Width
    intermediate_size: Width
    vocab_size: Vocabulary
    max_position_embeddings: Positions
    rms_norm_eps: Epsilon
    rope_parameters: RopeParameters

    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    sliding_window: None = None
    tie_word_embeddings: Literal[False] = False

    @property
    def geometry(self) -> TransformerConfig:
        rope = self.rope_parameters
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
            rope_theta=rope.rope_theta,
            yarn=Yarn(
                factor=rope.factor,
                original_positions=rope.original_max_position_embeddings,
                beta_fast=rope.beta_fast,
                beta_slow=rope.beta_slow,
                mscale=rope.mscale,
                mscale_all_dim=rope.mscale_all_dim,
            ),
            query_scaling=QueryScaling(
                beta=rope.llama_4_scaling_beta, original_positions=rope.original_max_position_embeddings
            ),
        )

    def spec(self, special_tokens: Mapping[str, int], generation_eos_ids: Sequence[int] = ()) -> ModelSpec:
        """The ends of `config.json`, and those that `generation_config.json` names beside."""
        return ModelSpec(
            family="nemotron_labs_diffusion",
            vocab_size=self.vocab_size,
            mask_id=self.mask_token_id,
            eos_ids=frozenset({*self.eos_token_id, *generation_eos_ids}),
            max_model_len=self.max_position_embeddings,
            attention="block_causal",
            commit="causal",
            says_next=True,
            block_length=self.block_size,
        )


def destinations(config: TransformerConfig) -> Destinations:
    """Tensor names of the published checkpoints: Llama's, below an encoder and beside a head of another name.

    Those of the adapter are PEFT's.
    """
    places = {
        f"encoder.{name.removeprefix('model.')}": place
        for name, place in qwen.destinations(config).items()
        if name != "lm_head.weight"
    }
    places["diffusion_head.weight"] = Destination("head.weight")
    if config.draft_adapter:
        for i in range(config.num_layers):
            theirs, ours = f"base_model.model.encoder.layers.{i}.self_attn.o_proj", f"blocks.{i}.attention.adapter"
            places[f"{theirs}.lora_A.weight"] = Destination(f"{ours}.down.weight")
            places[f"{theirs}.lora_B.weight"] = Destination(f"{ours}.up.weight")
    return places
