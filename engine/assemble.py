"""Makes an engine from a config: finds the checkpoint, loads its weights, sizes the KV pool, warms up.

Settings that cannot work raise before the weights are loaded, which takes minutes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from engine.core.config import EngineConfig, ModelSpec
from engine.core.errors import CapacityError, ConfigError, InvalidRequest
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.request import Submission
from engine.engine import Engine, EngineInfo
from engine.execution.budget import kv_pool_pages
from engine.execution.graphs import shapes_of
from engine.execution.isolate import is_memory_short
from engine.execution.relay import can_relay
from engine.execution.runner import (
    Runner,
    check_attention,
    choose_device,
    choose_dtype,
    choose_kernel,
    choose_max_batch_rows,
    choose_max_model_len,
    enter_device,
    make_pool,
    set_threads,
    warn_of_slow_experts,
)
from engine.execution.warmup import warm_up
from engine.kernels import native, proposals
from engine.kernels.attention import attend_spans
from engine.kernels.compiled import check_compiler, find_code_folder
from engine.kernels.kv import cuda
from engine.kernels.kv.formats import is_quantised, stored_dtype
from engine.models import find, load_model
from engine.models.layers import Transformer
from engine.models.quantised.schemes import check_quantization
from engine.models.weights import locate
from engine.scheduling.checks import check
from engine.unmask.policies import effective

Progress = Callable[[Literal["loading", "compiling"], int, int], None]
"""Called with the phase, its bytes of weights or forwards that are done, and how many there are."""


def load(config: EngineConfig, progress: Progress | None = None) -> Engine:
    """Loads the engine that a config describes. Blocks until weights are loaded and, if used, the compiler is done.

    Raises LoadError if the checkpoint cannot be served, CapacityError if it does not fit, ConfigError on settings that
    contradict each other or the machine.
    """
    find_code_folder()
    device = choose_device(config)
    enter_device(device)
    description = find(config.model, config.revision)
    choose_max_batch_rows(config, description.spec)  # before the weights are loaded, which takes minutes
    check_attention(config, description.geometry)
    dtype = choose_dtype(config, device)
    check_quantization(config.quantization, device, dtype)
    if config.compile:
        check_compiler(device)
    folder = locate(config.model, config.revision)
    loading = partial(progress, "loading") if progress else None
    try:
        model = load_model(folder, description, dtype, device, loading, config.quantization)
        return assemble(config, model, description.spec, folder, progress)
    except Exception as error:
        if is_memory_short(error):
            raise CapacityError(f"memory runs out while {config.model} is loaded on {device}") from error
        raise


def check_settings(config: EngineConfig, diffusion: DiffusionParams, temperature: float = 0.0) -> ModelSpec:
    """The model as an engine of this config would serve it, from its `config.json` alone.

    `diffusion`, `temperature`: of requests that name none. Raises LoadError if it cannot be served, ConfigError on
    settings that contradict each other, and on parameters with which every request would be refused.
    """
    description = find(config.model, config.revision)
    check_attention(config, description.geometry)
    spec = replace(description.spec, max_model_len=choose_max_model_len(config, description.spec))
    sampling = SamplingParams(max_tokens=1, temperature=temperature)
    shortest = Submission(request_id="", prompt_ids=[0], sampling=sampling, diffusion=diffusion)
    try:
        check(effective(shortest), spec, choose_max_batch_rows(config, spec))
    except InvalidRequest as error:
        raise ConfigError(str(error)) from None
    return spec


def assemble(
    config: EngineConfig, model: Transformer, spec: ModelSpec, folder: Path, progress: Progress | None = None
) -> Engine:
    """An engine over a model that is in memory. Raises CapacityError and ConfigError as `load` does."""
    device, dtype, geometry = choose_device(config), model.embed.dtype, model.config
    stored = stored_dtype(config.kv_dtype, dtype)
    max_model_len, max_batch_rows = choose_max_model_len(config, spec), choose_max_batch_rows(config, spec)
    set_threads(config, geometry)
    if device.type == "cpu":
        # Compiles the kernels, once on a machine: here, and not during the first request.
        native.kernel()
        proposals.kernel()
    else:
        proposals.triton()
        if is_quantised(stored):
            cuda.triton()
    if config.compile:
        check_compiler(device)
        model.compile_parts()  # compiled parts need unpacked weights
    else:
        model.pack()
    pages = kv_pool_pages(config, geometry, dtype, device, max_model_len, max_batch_rows)
    pool = make_pool(geometry, pages * config.page_size, stored, device, config.kv_prune)
    kernel = choose_kernel(config, geometry, dtype, device)
    warn_of_slow_experts(geometry, dtype, device)
    runner = Runner(model, pool, device, kernel)
    served = replace(spec, max_model_len=max_model_len)
    is_captured = config.cuda_graphs and kernel is not attend_spans
    warm_up(
        runner,
        served,
        max_batch_rows=max_batch_rows,
        page_size=config.page_size,
        is_compiled=config.compile,
        shapes=shapes_of(config, max_model_len, max_batch_rows, pool.dump) if is_captured else (),
        progress=partial(progress, "compiling") if progress and config.compile else None,
    )
    return Engine(
        runner,
        EngineInfo(
            model=config.model,
            folder=folder,
            spec=served,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            kv_dtype=str(dtype).removeprefix("torch.") if config.kv_dtype == "auto" else config.kv_dtype,
            quantization=config.quantization,
            kv_prune=config.kv_prune,
            num_parameters=runner.num_parameters,
            weight_bytes=runner.weight_bytes,
            kv_tokens=pages * config.page_size,
            kv_bytes=runner.kv_bytes,
            page_size=config.page_size,
            max_batch_rows=max_batch_rows,
            max_running_requests=config.max_running_requests,
            max_queued_requests=config.max_queued_requests,
            shares_prefixes=config.prefix_caching and spec.is_block_causal,
            relay_tokens=config.relay_tokens if can_relay(geometry, pool, spec) else 0,
        ),
    )
