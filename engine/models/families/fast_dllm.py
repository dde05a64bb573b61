"""Fast-dLLM v2: Efficient-Large-Model/Fast_dLLM_v2_1.5B and _7B (arXiv 2509.26328).

Qwen2's layout with block-causal attention. Logits are shifted by one, as in the autoregressive model that it grew from.
Says how its `config.json` and tensor names map to ours.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from engine.core.config import ModelSpec
from engine.core.params import MAX_BLOCK
from engine.core.ranges import Ge, Le
from engine.models.config_file import named_token
from engine.models.families.qwen import QwenConfig, destinations

__all__ = ["ARCHITECTURES", "Config", "destinations"]

ARCHITECTURES: tuple[str, ...] = ("Fast_dLLM_QwenForCausalLM",)

_MASK = "|<MASK>|"
"""The mask, of which only the tokenizer knows the id."""


class Config(QwenConfig):
    """Qwen2's keys, and the block."""

    bd_size: Annotated[int, Ge(1), Le(MAX_BLOCK)]
    attention_bias: Literal[True] = True

    def spec(self, special_tokens: Mapping[str, int], generation_eos_ids: Sequence[int] = ()) -> ModelSpec:
        """Its samplers stop at the end that `config.json` names, not at those of `generation_config.json`.

        Raises LoadError if the tokenizer has no mask.
        """
        return ModelSpec(
            family="Fast_dLLM_Qwen",
            vocab_size=self.vocab_size,
            mask_id=named_token(_MASK, special_tokens),
            eos_ids=frozenset(self.eos_token_id),
            max_model_len=self.max_position_embeddings,
            shift=1,
            attention="block_causal",
            block_length=self.bd_size,
            strict_threshold=True,
        )
