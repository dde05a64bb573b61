"""Memory that a model would take, from its `config.json` alone, before weights are fetched or a machine is rented.

Does the arithmetic of `budget` without a tensor, so that it works for models far larger than this machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from engine.core.config import EngineConfig, ModelSpec
from engine.core.params import DiffusionParams, block_length, resolved
from engine.execution.budget import kv_bytes_per_token, step_bytes
from engine.execution.choices import DTYPES, choose_max_batch_rows, choose_max_model_len
from engine.kernels.kv.formats import stored_dtype
from engine.models import decoded_bytes, find, weight_bytes
from engine.models.quantised.schemes import SCHEMES
from engine.models.ranks.cut import Rank, check_divides
from engine.scheduling.safe_state import most_alike, most_alike_growing


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory of a model in one dtype, and what fits into the rest; with several ranks, of each one's device."""

    weight_bytes: int
    step_bytes: int
    """Temporary bytes of a step of `max_batch_rows`, beside weights and KV."""
    kv_bytes_per_token: int
    """Bytes of keys and values of one position over all layers, as the pool stores them, and of what the position
    carries beside its token."""
    kv_tokens: int
    """Positions whose keys and values fit beside weights and step, in whole pages; 0 if these alone do not fit."""
    canvases: int
    """Requests of `max_model_len` that fit at once; if 0, the model cannot be served like this."""
    openings: int
    """Such requests that run at once if half of each is prompt: pages are taken as blocks open (`lookahead`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """One model against one memory, in every dtype."""

    model: str
    family: str
    num_parameters: int
    num_active_parameters: int
    """Those that one row is multiplied by, and the embedding table: of experts, those that a row goes through."""
    max_model_len: int
    max_batch_rows: int
    num_devices: int
    """Devices that the model is cut for, each with its part (`tensor_parallel_size`)."""
    memory_bytes: int
    """What weights, KV pool and a step may take together: the memory of one device times `memory_fraction`."""
    footprints: Mapping[str, Footprint]
    """By the name of the dtype: of all that its weights can be stored in as `quantization` says."""


def plan_memory(config: EngineConfig, memory_bytes: int, diffusion: DiffusionParams | None = None) -> MemoryPlan:
    """How the model of `config` fits into a device with this much memory; `memory_fraction` defaults to 0.9.

    `diffusion` says how requests are decoded; the default is the engine's. Fetches no weights. Raises LoadError if the
    checkpoint cannot be served, ConfigError on a `max_model_len` beyond the model's own or beyond what a batch may
    hold, and on a `tensor_parallel_size` that does not divide the model.
    """
    description = find(config.model, config.revision)
    whole, max_model_len = description.geometry, choose_max_model_len(config, description.spec)
    check_divides(whole, config.tensor_parallel_size)
    geometry = Rank(0, config.tensor_parallel_size).geometry(whole)
    max_batch_rows = choose_max_batch_rows(config, description.spec)
    budget = int(memory_bytes * (config.memory_fraction or 0.9))
    canvas_pages = -(-max_model_len // config.page_size)
    alike = most_alike_growing if description.spec.is_block_causal else most_alike
    opening_pages = -(-_opening(max_model_len, diffusion or DiffusionParams(), description.spec) // config.page_size)
    scheme = SCHEMES[config.quantization]

    def footprint(dtype: torch.dtype) -> Footprint:
        weights = weight_bytes(geometry, dtype, config.quantization)
        per_token = kv_bytes_per_token(geometry, dtype, stored_dtype(config.kv_dtype, dtype))
        step = step_bytes(geometry, dtype, max_batch_rows, config.tensor_parallel_size)
        step += decoded_bytes(geometry, dtype, config.quantization)
        pages = max(budget - weights - step, 0) // (per_token * config.page_size)
        return Footprint(
            weight_bytes=weights,
            step_bytes=step,
            kv_bytes_per_token=per_token,
            kv_tokens=pages * config.page_size,
            canvases=pages // canvas_pages,
            openings=alike(pages, opening_pages, canvas_pages),
        )

    return MemoryPlan(
        model=config.model,
        family=description.spec.family,
        num_parameters=whole.num_parameters,
        num_active_parameters=whole.num_active_parameters,
        max_model_len=max_model_len,
        max_batch_rows=max_batch_rows,
        num_devices=config.tensor_parallel_size,
        memory_bytes=budget,
        footprints={name: footprint(dtype) for name, dtype in DTYPES.items() if not scheme or dtype in scheme.dtypes},
    )


def _opening(max_model_len: int, diffusion: DiffusionParams, spec: ModelSpec) -> int:
    """Positions that are visible while the first block is open, of a canvas whose first half is the prompt."""
    lookahead = resolved(diffusion, spec).lookahead
    if lookahead is None:
        return max_model_len
    return min(max_model_len // 2 + block_length(diffusion, spec) + lookahead, max_model_len)
