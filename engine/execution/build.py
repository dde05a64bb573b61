"""Makes a model in memory ready for a device, and a runner of it: on each rank, or in the one process there is."""

from collections.abc import Callable

import torch

from engine.core.config import EngineConfig, ModelSpec
from engine.execution.budget import kv_pool_pages
from engine.execution.choices import (
    choose_kernel,
    choose_max_batch_rows,
    choose_max_model_len,
    set_threads,
    warn_of_slow_experts,
)
from engine.execution.runner import Runner, make_pool
from engine.kernels import native, proposals
from engine.kernels.attention import Kernel
from engine.kernels.compiled import check_compiler
from engine.kernels.kv import cuda
from engine.kernels.kv.formats import is_quantised, stored_dtype
from engine.kernels.kv.pool import KVPool, LayeredKVPool
from engine.models.layers import Transformer

Make = Callable[[Transformer, KVPool | LayeredKVPool, torch.device, Kernel], Runner]


def get_ready(config: EngineConfig, model: Transformer, device: torch.device) -> None:
    """Sets threads, builds kernels, packs or compiles weights. Raises ConfigError where the compiler does not work."""
    set_threads(config, model.config)
    if device.type == "cpu":
        # Compiles the kernels, once on a machine: here, and not during the first request.
        native.kernel()
        proposals.kernel()
    else:
        proposals.triton()
        if is_quantised(stored_dtype(config.kv_dtype, model.embed.dtype)):
            cuda.triton()
    if config.compile:
        check_compiler(device)
        model.compile_parts()  # compiled parts need unpacked weights
    else:
        model.pack()


def pages_of(config: EngineConfig, model: Transformer, spec: ModelSpec, device: torch.device) -> int:
    """How many pages of KV fit on this device. Raises CapacityError if the longest canvas does not."""
    limits = choose_max_model_len(config, spec), choose_max_batch_rows(config, spec)
    return kv_pool_pages(config, model.config, model.embed.dtype, device, *limits)


def make_runner(
    config: EngineConfig, model: Transformer, pages: int, device: torch.device, make: Make = Runner
) -> Runner:
    """A runner of this model over a pool of so many pages. Raises ConfigError on a kernel that does not work."""
    geometry, dtype = model.config, model.embed.dtype
    stored = stored_dtype(config.kv_dtype, dtype)
    pool = make_pool(geometry, pages * config.page_size, stored, device, config.kv_prune)
    kernel = choose_kernel(config, geometry, dtype, device)
    warn_of_slow_experts(geometry, dtype, device)
    return make(model, pool, device, kernel)
