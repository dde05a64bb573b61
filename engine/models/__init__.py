"""The model families, and the one way from a checkpoint folder to a model.

A family is one file that says how its `config.json` and tensor names map to ours; adding one is that file and a
line in `FAMILIES`. Knows no policy, no batch, no KV.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from engine.config import ModelSpec
from engine.errors import LoadError
from engine.models import dream, llada
from engine.models.layers import Transformer, TransformerConfig, rotary_table
from engine.models.weights import Destinations, Progress, load_weights, locate, read_json, special_tokens


class Family(Protocol):
    """What a family's module provides."""

    ARCHITECTURES: tuple[str, ...]
    """Values of `architectures` in `config.json`."""

    def transformer_config(self, config: Mapping[str, Any]) -> TransformerConfig: ...
    def model_spec(self, config: Mapping[str, Any], special_tokens: Mapping[str, int]) -> ModelSpec: ...
    def destinations(self, config: TransformerConfig) -> Destinations: ...


FAMILIES: Mapping[str, Family] = {"llada": llada, "Dream": dream}
"""`model_type` of `config.json` -> family."""


class Description(NamedTuple):
    """What `config.json` and the tokenizer say of a checkpoint, before any weight is read."""

    family: Family
    geometry: TransformerConfig
    spec: ModelSpec


def find(model: str, revision: str | None = None) -> Description:
    """Describes a folder or a hub id, of which no weights are fetched. Raises LoadError, which says what is served."""
    try:
        folder = locate(model, revision, weights=False)
    except LoadError as error:
        raise LoadError(f"{error}; known families: {_known()}") from None
    return describe(folder)


def describe(folder: Path) -> Description:
    """Reads a checkpoint folder's `config.json`. Raises LoadError if it is missing, incomplete or unknown."""
    if not folder.is_dir():
        raise LoadError(f"{folder} is no folder")
    config = read_json(folder / "config.json")
    family = _family(folder, config)
    try:
        return Description(family, family.transformer_config(config), family.model_spec(config, special_tokens(folder)))
    except KeyError as error:
        raise LoadError(f"{folder / 'config.json'} lacks {error}") from None


def load_model(
    folder: Path, description: Description, dtype: torch.dtype, device: torch.device, progress: Progress | None = None
) -> Transformer:
    """The model with its weights, ready for inference. Raises LoadError if tensors are missing or misshapen."""
    model = new_model(description.geometry, dtype, device)
    load_weights(model, folder, description.family.destinations(description.geometry), progress)
    return model


def new_model(geometry: TransformerConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A model for inference with uninitialised weights of this dtype; the rotary tables are float32."""
    with torch.device("meta"):
        model = Transformer(geometry)
    model = model.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    model.cos, model.sin = (table.to(device) for table in rotary_table(geometry))
    return model


def _family(folder: Path, config: Mapping[str, Any]) -> Family:
    architectures = config.get("architectures") or []
    for family in FAMILIES.values():
        if any(name in family.ARCHITECTURES for name in architectures):
            return family
    named = ", ".join(architectures) or config.get("model_type") or "nothing"
    raise LoadError(f"{folder}: unknown architecture {named}; known families: {_known()}")


def _known() -> str:
    return ", ".join(f"{name} ({', '.join(family.ARCHITECTURES)})" for name, family in FAMILIES.items())
