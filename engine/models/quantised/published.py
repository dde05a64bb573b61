"""Checkpoints whose weights were published as codes: what `config.json` says of them, and the numbers they stand for.

Bytes with scales are read, int8 and e4m3, as compressed-tensors and the fp8 checkpoints of DeepSeek and Qwen have them:
a scale for a weight, for each of its rows, or for each of its tiles. They become numbers while they are loaded, and
codes again if `quantization` asks for it. Activations that they would round as well keep their dtype. Other formats are
refused by name. Sources: https://huggingface.co/docs/transformers/quantization/compressed_tensors and .../fbgemm_fp8;
DeepSeek-V3 (arXiv 2412.19437), 3.3.2.
"""

import reprlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from engine.core.errors import LoadError
from engine.core.ranges import Ge
from engine.models.declared import FILLED, Declaration

INPUT_SCALE = "input_scale"
"""What the scale of activations is named behind `layer.`; it is not read."""

Tile = Annotated[list[Annotated[int, Ge(1)]], FILLED]
"""Rows and columns that share a scale."""


class _Weights(Declaration):
    num_bits: int
    type: Literal["int", "float"]
    strategy: str
    symmetric: bool = True
    block_structure: Tile | None = None


class _Group(Declaration):
    weights: _Weights


class _CompressedTensors(Declaration):
    format: str
    config_groups: Annotated[dict[str, _Group], FILLED]


class _Fp8(Declaration):
    weight_block_size: Tile | None = None
    fmt: Literal["e4m3"] = "e4m3"


class _Named(Declaration):
    quant_method: str
    bits: int | None = None
    load_in_4bit: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """How weights that are codes lie in a checkpoint's files."""

    dtype: Literal["I8", "F8_E4M3"]
    """Of codes, by safetensors' names. Weights of other dtypes are numbers."""
    scale: str = "weight_scale"
    """What the scales of `layer.weight` are named behind `layer.`"""
    tile: tuple[int, int] | None = None
    """Rows and columns that share a scale; None is a row, or the whole weight."""

    def scales_of(self, name: str) -> str:
        """The name of the scales of a weight."""
        return name.removesuffix("weight") + self.scale

    def is_beside(self, name: str, weights: Container[str]) -> bool:
        """Whether a tensor of this name belongs to one of these weights."""
        layer, _, own = name.rpartition(".")
        return own in (self.scale, INPUT_SCALE) and f"{layer}.weight" in weights

    def fits(self, weight: Sequence[int], scales: Sequence[int]) -> bool:
        """Whether scales of this shape are for a weight of that one."""
        if len(weight) != 2:
            return False
        if self.tile:
            return list(scales) == [-(-size // own) for size, own in zip(weight, self.tile, strict=True)]
        return list(scales) in ([], [1], [1, 1], [weight[0]], [weight[0], 1])

    def numbers(self, codes: Tensor, scales: Tensor) -> Tensor:
        """codes [rows, columns], scales of a shape that `fits` -> float32 [rows, columns]."""
        scales = scales.float()
        if self.tile:
            for dim, own in enumerate(self.tile):
                scales = scales.repeat_interleave(own, dim=dim).narrow(dim, 0, codes.shape[dim])
        elif scales.dim() == 1 and len(scales) > 1:
            scales = scales.unsqueeze(-1)
        return codes.to(torch.float32) * scales


def read_published(values: Mapping[str, Any], source: Path) -> Published | None:
    """What a `config.json` says of codes; None if it says nothing. Raises LoadError, which names what is not read."""
    # Compressed-tensors' older files have the second name.
    given = values.get("quantization_config") or values.get("compression_config")
    if not given:
        return None
    if not isinstance(given, dict):
        raise LoadError(f"{source}: quantization_config is {reprlib.repr(given)}; it should be a valid dictionary")
    source = source.with_name(f"{source.name}: quantization_config")
    named = _Named.read(given, source)
    match named.quant_method:
        case "compressed-tensors":
            return _compressed(_CompressedTensors.read(given, source), source)
        case "fp8":
            tile = _Fp8.read(given, source).weight_block_size
            return Published("F8_E4M3", "weight_scale_inv", _pair(tile, source)) if tile else Published("F8_E4M3")
    bits = 4 if named.load_in_4bit else named.bits
    raise LoadError(
        f"{source}: weights in {named.quant_method}'s format{f' of {bits} bits' if bits else ''} are not read; "
        + _instead(bits)
    )


def _compressed(given: _CompressedTensors, source: Path) -> Published:
    weights, *others = (group.weights for group in given.config_groups.values())
    is_read = (
        given.format in ("int-quantized", "float-quantized", "naive-quantized")
        and all(other == weights for other in others)
        and weights.num_bits == 8
        and weights.symmetric
        and weights.strategy in ("tensor", "channel", "block")
    )
    if not is_read:
        raise LoadError(
            f"{source}: compressed-tensors' format {given.format} ({weights.type}{weights.num_bits}, a scale for each "
            f"{weights.strategy}) is not read, only symmetric int8 and fp8 with one for each tensor, channel or block; "
            + _instead(weights.num_bits)
        )
    tile = _pair(weights.block_structure, source) if weights.strategy == "block" else None
    return Published("I8" if weights.type == "int" else "F8_E4M3", tile=tile)


def _pair(tile: Sequence[int] | None, source: Path) -> tuple[int, int]:
    if tile is None or len(tile) != 2:
        raise LoadError(f"{source}: blocks are {tile}; they should have rows and columns")
    return tile[0], tile[1]


def _instead(bits: int | None) -> str:
    own = "int4` (on CUDA)" if bits and bits < 8 else "int8`"
    return f"serve the checkpoint that it was made from, with `quantization: {own}"
