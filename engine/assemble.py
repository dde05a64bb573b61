"""Makes an engine from a config: finds the checkpoint, loads its weights, sizes the KV pool, warms up.

Settings that cannot work raise before the weights are loaded, which takes minutes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from engine.core.config import EngineConfig, ModelSpec
from engine.core.errors import CapacityError, ConfigError, DeviceLost, InvalidRequest, LoadError
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.submission import Submission
from engine.engine import Engine, EngineInfo
from engine.execution.build import get_ready, make_runner, pages_of
from engine.execution.choices import (
    check_attention,
    choose_device,
    choose_dtype,
    choose_max_batch_rows,
    choose_max_model_len,
    enter_device,
)
from engine.execution.graphs import shapes_of
from engine.execution.isolate import is_memory_short
from engine.execution.ranks.group import Group
from engine.execution.ranks.processes import start_processes
from engine.execution.ranks.runner import RankedRunner
from engine.execution.relay import can_relay
from engine.execution.runner import Runner
from engine.execution.warmup import warm_up
from engine.kernels.attention import attend_spans
from engine.kernels.compiled import check_compiler, find_code_folder
from engine.models import Description, find, load_model
from engine.models.layers import Transformer
from engine.models.quantised.schemes import check_quantization
from engine.models.ranks.cut import Rank, check_divides
from engine.models.weights import locate
from engine.scheduling.checks.submission import check
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
    _check_parts(config, description)
    if config.compile:
        check_compiler(device)
    folder = locate(config.model, config.revision)
    loading = partial(progress, "loading") if progress else None
    try:
        if config.tensor_parallel_size > 1:
            return _on_ranks(config, description, folder, progress)
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
    _check_parts(config, description)
    spec = replace(description.spec, max_model_len=choose_max_model_len(config, description.spec))
    sampling = SamplingParams(max_tokens=1, temperature=temperature)
    shortest = Submission(request_id="", prompt_ids=[0], sampling=sampling, diffusion=diffusion)
    try:
        check(effective(shortest), spec, choose_max_batch_rows(config, spec))
    except InvalidRequest as error:
        raise ConfigError(str(error)) from None
    return spec


def _check_parts(config: EngineConfig, description: Description) -> None:
    """Raises ConfigError if the model cannot be cut into as many parts as there are ranks."""
    check_divides(description.geometry, config.tensor_parallel_size)
    if description.published and config.tensor_parallel_size > 1:
        raise ConfigError(
            f"tensor_parallel_size is {config.tensor_parallel_size}, and the weights of {config.model} are codes, of "
            "which no parts are read; serve it on one device, or the checkpoint that was not quantised"
        )


def _on_ranks(config: EngineConfig, description: Description, folder: Path, progress: Progress | None) -> Engine:
    """An engine on this process, as rank 0, and others that it starts."""
    device, rank = choose_device(config), Rank(0, config.tensor_parallel_size)
    followers = start_processes(rank.size)
    try:
        followers.start(config, folder)
        loading = partial(progress, "loading") if progress else None
        part = load_model(folder, description, choose_dtype(config, device), device, loading, rank=rank)
        get_ready(config, part, device)
        pages = min(pages_of(config, part, description.spec, device), followers.pages())
        group = Group(rank, followers.begin(pages), device)
        make = partial(RankedRunner, whole=description.geometry, group=group, others=followers)
        runner = make_runner(config, part, pages, device, make)
        if error := followers.answers():
            raise error
        return _started(config, runner, description.spec, folder, progress)
    except DeviceLost as error:
        followers.close()
        raise LoadError(f"{error}, while {config.model} was loaded; was there memory enough?") from error
    except BaseException:
        followers.close()
        raise


def assemble(
    config: EngineConfig, model: Transformer, spec: ModelSpec, folder: Path, progress: Progress | None = None
) -> Engine:
    """An engine over a model that is in memory. Raises CapacityError and ConfigError as `load` does."""
    device = choose_device(config)
    get_ready(config, model, device)
    runner = make_runner(config, model, pages_of(config, model, spec, device), device)
    return _started(config, runner, spec, folder, progress)


def _started(config: EngineConfig, runner: Runner, spec: ModelSpec, folder: Path, progress: Progress | None) -> Engine:
    """An engine over a runner, which is warmed up. Raises CapacityError and LoadError as `warm_up` does."""
    device, dtype, geometry, pool = runner.device, runner.model.embed.dtype, runner.model.config, runner.pool
    max_model_len, max_batch_rows = choose_max_model_len(config, spec), choose_max_batch_rows(config, spec)
    served = replace(spec, max_model_len=max_model_len)
    is_alone = config.tensor_parallel_size == 1  # a graph would have to hold sums over ranks
    is_captured = config.cuda_graphs and runner.kernel is not attend_spans and is_alone
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
            kv_tokens=pool.dump,
            kv_bytes=runner.kv_bytes,
            page_size=config.page_size,
            max_batch_rows=max_batch_rows,
            max_running_requests=config.max_running_requests,
            max_queued_requests=config.max_queued_requests,
            shares_prefixes=config.prefix_caching and spec.is_block_causal,
            relay_tokens=config.relay_tokens if can_relay(geometry, pool, spec) else 0,
        ),
    )
