"""A low-rank adapter of attention's output (LoRA, arXiv 2106.09685), which some rows of a forward go through.

Reads the PEFT config that says its size. Knows no family, and no rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from engine.core.errors import LoadError
from engine.core.ranges import Ge, Gt, Le
from engine.models.declared import FILLED, Declaration
from engine.models.mlp import Linear

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Names of PEFT's files in an adapter's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """An adapter of every layer's attention output."""

    rank: int
    scale: float
    """What its result is multiplied by."""

    def parameters(self, num_inputs: int, num_outputs: int) -> int:
        """Its weights in one layer."""
        return self.rank * (num_inputs + num_outputs)


class AdapterFile(Declaration):
    """PEFT's keys. Keys with a single value are options that change the arithmetic, and that no checkpoint uses."""

    r: Annotated[int, Ge(1), Le(4096)]
    lora_alpha: Annotated[float, Gt(0)]
    target_modules: Annotated[list[Literal["o_proj"]], FILLED]
    peft_type: Literal["LORA"]
    bias: Literal["none"] = "none"
    fan_in_fan_out: Literal[False] = False
    use_dora: Literal[False] = False
    use_rslora: Literal[False] = False
    modules_to_save: None = None
    alpha_pattern: dict[str, float] | None = None
    rank_pattern: dict[str, int] | None = None


def read_adapter(values: dict[str, Any], path: Path) -> AdapterConfig:
    """Raises LoadError, with the key's name, on an adapter that would be computed wrongly."""
    given = AdapterFile.read(values, path)
    for name in ("alpha_pattern", "rank_pattern"):
        if getattr(given, name):
            raise LoadError(f"{path}: {name} gives some layers another size; all must have one")
    return AdapterConfig(rank=given.r, scale=given.lora_alpha / given.r)


class Adapter(nn.Module):
    """What it adds to the output of one layer's attention."""

    def __init__(self, config: AdapterConfig, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.down = Linear(num_inputs, config.rank)
        self.up = Linear(config.rank, num_outputs)
        self.scale = config.scale

    def forward(self, attended: Tensor, adapted: Tensor) -> Tensor:
        """attended [rows, num_inputs], adapted bool [rows, 1] -> [rows, num_outputs], 0 where a row is not adapted."""
        return torch.where(adapted, self.up(self.down(attended)) * self.scale, 0.0)
