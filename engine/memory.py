"""What a model would take, from its `config.json` alone: for a look before weights are fetched or a machine is rented.

Does the runner's arithmetic without the runner's tensors; works for geometries far larger than this machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.config import EngineConfig
from engine.models import describe
from engine.models.weights import locate
from engine.runner import DTYPES, choose_max_model_len, kv_bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a model takes in one dtype, and what that leaves of the memory."""

    weight_bytes: int
    kv_bytes_per_token: int
    """Keys and values of one position over all layers."""
    kv_tokens: int
    """Positions whose keys and values fit beside the weights, in whole pages; 0 if not even the weights fit."""
    canvases: int
    """Requests of `max_model_len` that fit at once; without any, the model cannot be served like this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """One model against one memory, in every dtype."""

    model: str
    family: str
    num_parameters: int
    max_model_len: int
    memory_bytes: int
    """What weights and KV pool may take together: the memory times `memory_fraction`."""
    footprints: Mapping[str, Footprint]
    """By the name of the dtype."""


def plan_memory(config: EngineConfig, memory_bytes: int) -> MemoryPlan:
    """How the model of `config` fits into a device with this much memory; `memory_fraction` defaults to 0.9.

    Fetches no weights. Raises LoadError if the checkpoint cannot be served, ConfigError on a context beyond its own.
    """
    description = describe(locate(config.model, config.revision, weights=False))
    geometry, max_model_len = description.geometry, choose_max_model_len(config, description.spec)
    budget = int(memory_bytes * (config.memory_fraction or 0.9))

    def footprint(itemsize: int, per_token: int) -> Footprint:
        weight_bytes = geometry.num_parameters * itemsize
        pages = max(budget - weight_bytes, 0) // (per_token * config.page_size)
        return Footprint(
            weight_bytes=weight_bytes,
            kv_bytes_per_token=per_token,
            kv_tokens=pages * config.page_size,
            canvases=pages // -(-max_model_len // config.page_size),
        )

    return MemoryPlan(
        model=config.model,
        family=description.spec.family,
        num_parameters=geometry.num_parameters,
        max_model_len=max_model_len,
        memory_bytes=budget,
        footprints={
            name: footprint(dtype.itemsize, kv_bytes_per_token(geometry, dtype)) for name, dtype in DTYPES.items()
        },
    )
