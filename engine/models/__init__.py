"""The model families, and loading a model from a checkpoint folder.

A family is one file of `families/` that says how its `config.json` and tensor names map to ours; adding one is that
file and a line in `FAMILIES`. Knows no policy, no batch, no KV.
"""

import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from engine.core.config import ModelSpec, Quantization
from engine.core.errors import LoadError
from engine.models.adapter import CONFIG, WEIGHTS, read_adapter
from engine.models.config_file import ConfigFile
from engine.models.families import (
    diffusion_gemma,
    dream,
    fast_dllm,
    llada,
    llada2,
    llada_moe,
    nemotron,
    sdar,
    sdar_moe,
)
from engine.models.layers import Transformer, TransformerConfig
from engine.models.noised import NoisedTransformer
from engine.models.quantised.layers import Quantiser, quantised_weights
from engine.models.quantised.published import Published, read_published
from engine.models.quantised.schemes import SCHEMES
from engine.models.ranks.cut import Rank
from engine.models.ranks.load import load_part
from engine.models.weights import (
    Destinations,
    Progress,
    find_tensors,
    generation_eos_ids,
    load_weights,
    locate,
    read_json,
    special_tokens,
)


class Family(Protocol):
    """What a family's module provides."""

    ARCHITECTURES: tuple[str, ...]
    """Values of `architectures` in `config.json`."""

    @property
    def Config(self) -> type[ConfigFile]:  # noqa: N802 - a class of the module
        """The other keys that the family reads, with their types and ranges."""
        ...

    def destinations(self, config: TransformerConfig) -> Destinations: ...


FAMILIES: Mapping[str, Family] = {
    "llada": llada,
    "Dream": dream,
    "sdar": sdar,
    "Fast_dLLM_Qwen": fast_dllm,
    "sdar_moe": sdar_moe,
    "llada_moe": llada_moe,
    "llada2_moe": llada2,
    "nemotron_labs_diffusion": nemotron,
    "diffusion_gemma": diffusion_gemma,
}
"""Name -> family: `model_type` of its `config.json`, or a name of ours where two families share one."""


class Description(NamedTuple):
    """What `config.json` and the tokenizer say of a checkpoint, before any weight is read."""

    family: Family
    geometry: TransformerConfig
    spec: ModelSpec
    adapter: Path | None = None
    """The folder of the adapter for drafts, if the checkpoint has one."""
    unused: tuple[str, ...] = ()
    """`ConfigFile.UNUSED`"""
    published: Published | None = None
    """How weights lie in its files that are codes there, if any are."""


def find(model: str, revision: str | None = None) -> Description:
    """Describes a folder or a hub id without fetching weights. Raises LoadError, which names the known families."""
    try:
        folder = locate(model, revision, weights=False)
    except LoadError as error:
        raise LoadError(f"{error}; known families: {_known()}") from None
    return describe(folder)


def describe(folder: Path) -> Description:
    """Reads a checkpoint folder's `config.json`, and the token ids that stand only beside it.

    Raises LoadError if it is missing, unknown, or declares what cannot be computed.
    """
    if not folder.is_dir():
        raise LoadError(f"{folder} is no folder")
    path = folder / "config.json"
    values = read_json(path)
    family = _family(folder, values)
    config, published = family.Config.read(values, path), read_published(values, path)
    tokens, ends = special_tokens(folder), generation_eos_ids(folder)
    try:
        spec = config.spec(tokens, ends)
    except LoadError as error:
        raise LoadError(f"{folder}: {error}") from None
    mask = () if spec.mask_id is None else (spec.mask_id,)
    if (largest := max([*mask, *spec.eos_ids])) >= spec.vocab_size:
        raise LoadError(
            f"{folder}: {largest} is its mask or ends its answers; the vocabulary has {spec.vocab_size} tokens"
        )
    edits = [id_ for id_ in (spec.delete_id, spec.split_id) if id_ is not None]
    if any(id_ >= spec.vocab_size for id_ in edits):
        raise LoadError(f"{folder}: {max(edits)} deletes or splits; the vocabulary has {spec.vocab_size} tokens")
    others = {*mask, *spec.eos_ids}
    if len({*edits, *others}) < len(edits) + len(others):
        raise LoadError(
            f"{folder}: of the tokens {edits}, which delete and split, one is the other, its mask or an end"
        )
    if spec.mask_id in spec.eos_ids:
        raise LoadError(f"{folder}: {spec.mask_id} is its mask and ends its answers")
    adapter = folder / config.draft_adapter if config.draft_adapter else None
    if adapter is None or not adapter.is_dir():
        return Description(family, config.geometry, spec, unused=config.UNUSED, published=published)
    path = adapter / CONFIG
    geometry = replace(config.geometry, draft_adapter=read_adapter(read_json(path), path))
    return Description(family, geometry, replace(spec, has_draft_adapter=True), adapter, config.UNUSED, published)


def load_model(
    folder: Path,
    description: Description,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
    quantization: Quantization = "none",
    *,
    rank: Rank | None = None,
) -> Transformer:
    """The model with its weights, ready for inference; with `rank` its part alone, which must be joined first.

    `quantization`: one that `check_quantization` lets pass; "none" with `rank`, as parts are not read from codes.

    Raises LoadError if tensors are missing or misshapen, before memory is taken for any of them.
    """
    model, destinations = _skeleton(description.geometry), description.family.destinations(description.geometry)
    others = [description.adapter / WEIGHTS] if description.adapter else []
    published = description.published
    shards = find_tensors(folder, model, destinations, others, description.unused, published)
    if rank:
        part = new_model(rank.geometry(description.geometry), dtype, device)
        load_part(part, shards, destinations, description.geometry, rank, progress)
        return part
    scheme = SCHEMES[quantization]
    coded = {layer for _, layer in quantised_weights(model, scheme)}
    model = _on_device(model, dtype, device, coded)
    quantiser = Quantiser(model, scheme, dtype, device) if scheme else None
    load_weights(model, shards, destinations, progress, quantiser, published)
    if scheme and device.type == "cuda":
        torch.cuda.empty_cache()  # the memory of numbers that are codes now, which the KV pool may have
    return model


def weight_bytes(geometry: TransformerConfig, dtype: torch.dtype, quantization: Quantization = "none") -> int:
    """Bytes of all weights in this dtype, and of those that are codes as such."""
    scheme = SCHEMES[quantization]
    if scheme is None:
        return geometry.weight_bytes(dtype)
    coded = [layer.weight for _, layer in quantised_weights(_skeleton(geometry), scheme)]
    saved = sum(weight.numel() * dtype.itemsize - scheme.stored(*weight.shape) for weight in coded)
    return geometry.weight_bytes(dtype) - saved


def decoded_bytes(geometry: TransformerConfig, dtype: torch.dtype, quantization: Quantization = "none") -> int:
    """Bytes of the largest weight whose codes a product turns into numbers first; 0 if there are none."""
    if quantization == "none":
        return 0
    coded = quantised_weights(_skeleton(geometry), SCHEMES[quantization])
    return max((layer.weight.numel() * dtype.itemsize for _, layer in coded), default=0)


def new_model(geometry: TransformerConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A model for inference with uninitialised weights of this dtype; the rotary tables are float32."""
    return _on_device(_skeleton(geometry), dtype, device)


def _skeleton(geometry: TransformerConfig) -> Transformer:
    """The model's shapes only, without memory."""
    with torch.device("meta"):
        return (NoisedTransformer if geometry.sandwich else Transformer)(geometry)


def _on_device(
    model: Transformer, dtype: torch.dtype, device: torch.device, coded: Collection[nn.Module] = ()
) -> Transformer:
    """With uninitialised memory for its weights. Not by `to_empty`, which imports sympy, for half a second.

    A module with a `dtype` keeps it. Weights of `coded` modules stay without memory.
    """
    for module in model.modules():
        own = getattr(module, "dtype", None) or dtype
        for name, parameter in list(module.named_parameters(recurse=False)):
            if module in coded and name == "weight":
                continue
            memory = torch.empty(parameter.shape, dtype=own, device=device)
            setattr(module, name, nn.Parameter(memory, requires_grad=False))
    model.fill_tables(device)
    return model.eval()


def _family(folder: Path, config: Mapping[str, Any]) -> Family:
    named = config.get("architectures")
    architectures = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    for family in FAMILIES.values():
        if any(name in family.ARCHITECTURES for name in architectures):
            return family
    model_type = config.get("model_type", "nothing")
    unknown = ", ".join(architectures) or (model_type if isinstance(model_type, str) else reprlib.repr(model_type))
    raise LoadError(f"{folder}: unknown architecture {unknown}; known families: {_known()}{_nearest(architectures)}")


def _nearest(architectures: Sequence[str]) -> str:
    """Which known architecture has the name that is most like one of these, if any is."""
    known = [name for family in FAMILIES.values() for name in family.ARCHITECTURES]
    near = [name for unknown in architectures for name in get_close_matches(unknown, known, n=1, cutoff=0.7)]
    return f"; the nearest is {near[0]}" if near else ""


def _known() -> str:
    return ", ".join(f"{name} ({', '.join(family.ARCHITECTURES)})" for name, family in FAMILIES.items())
