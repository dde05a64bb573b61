"""What a configuration comes to on this machine: device, dtype, attention kernel, threads, and bounds of rows.

Chosen once, when an engine is built. Knows no requests and no policies.
"""

import logging
import os

import torch

from engine.core.config import EngineConfig, ModelSpec
from engine.core.errors import ConfigError
from engine.core.params import DiffusionParams, block_length
from engine.kernels.attention import Heads, Kernel, agrees, attend_spans
from engine.kernels.experts.mlps import has_grouped_products
from engine.kernels.kv.formats import stored_dtype
from engine.models.layers import TransformerConfig

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MIN_BATCH_ROWS = 2048
"""The least default row budget, for short canvases and few requests: enough for several refreshes at once."""

SMALL_MODEL = 10_000_000
"""Parameters below which one CPU thread is the fastest."""


def choose_device(config: EngineConfig, rank: int = 0) -> torch.device:
    """The device, on CUDA with its number; `auto` is CUDA if available. Raises ConfigError if it does not exist.

    Ranks have devices of their own, from the first one on.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cpu" or (config.device == "auto" and not count):
        return torch.device("cpu")
    number = int(config.device.partition(":")[2] or rank)
    if not count:
        raise ConfigError(f"device {config.device!r} was asked for, but torch sees no CUDA device")
    if config.tensor_parallel_size > count:
        raise ConfigError(
            f"tensor_parallel_size is {config.tensor_parallel_size}, but there are only {count} CUDA devices"
        )
    if number >= count:
        raise ConfigError(
            f"device {config.device!r} was asked for, but there are only {count} CUDA devices, from cuda:0"
        )
    return torch.device("cuda", number)


def enter_device(device: torch.device) -> None:
    """Sets the calling thread's current device. Without this, pinned memory would take some memory of the first one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # cuDNN's attention makes a plan for each new shape, 0.1 to 0.4 s on an H100: nearly every step has a new one.
        torch.backends.cuda.enable_cudnn_sdp(False)


def choose_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA; on CPUs without its instructions bfloat16 can be 100 times slower than float32."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[config.dtype]


def check_attention(config: EngineConfig, geometry: TransformerConfig) -> None:
    """Raises ConfigError if a kernel was asked for that no device has for this geometry."""
    if config.attention == "triton" and _is_windowed(geometry):
        raise ConfigError("attention is 'triton', which has no windows, and the model's layers have; leave it out")


def _is_windowed(geometry: TransformerConfig) -> bool:
    return any(geometry.window_of(layer) for layer in range(geometry.num_layers))


def choose_kernel(
    config: EngineConfig, geometry: TransformerConfig, dtype: torch.dtype, device: torch.device
) -> Kernel:
    """The attention kernel. Raises ConfigError if Triton was asked for and does not work for this geometry."""
    check_attention(config, geometry)
    if _is_windowed(geometry) or config.attention == "sdpa" or (config.attention == "auto" and device.type != "cuda"):
        return attend_spans
    if device.type != "cuda":
        raise ConfigError(f"attention is 'triton', which needs a CUDA device; this is {device}")
    try:
        from engine.kernels.triton_attention import attend_pages

        kv_heads, head_dim, _ = geometry.heads_of(0)  # without windows, all layers' are alike
        heads = Heads(kv_heads, geometry.num_heads // kv_heads, head_dim)
        stored = stored_dtype(config.kv_dtype, dtype)
        if agrees(attend_pages, heads, config.page_size, dtype, stored, device):
            return attend_pages
        cause = "it computes something else than torch"
    except Exception as error:  # noqa: BLE001 - whatever its compiler raises: torch can do without
        cause = f"{type(error).__name__}: {error}"
    if config.attention == "triton":
        raise ConfigError(f"attention is 'triton', which does not work here ({cause}); leave it out")
    logger.warning("attention by Triton does not work here (%s): SDPA attends request by request", cause)
    return attend_spans


def warn_of_slow_experts(geometry: TransformerConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Logs a warning where a CUDA device computes every expert for every row."""
    moe = geometry.moe
    if moe is None or not geometry.num_moe_layers or device.type != "cuda":
        return
    if not has_grouped_products(geometry.dim, moe.ff_dim, dtype, device):
        logger.warning(
            "every row goes through all %d experts, not through %d alone: grouped products need a GPU from Hopper on, "
            "bfloat16, widths that are multiples of 8, and a torch that has them; this is %s in %s",
            moe.num_experts,
            moe.experts_per_token,
            torch.cuda.get_device_name(device),
            str(dtype).removeprefix("torch."),
        )


def choose_max_model_len(config: EngineConfig, spec: ModelSpec) -> int:
    """The model's own limit, or less. Raises ConfigError if more was asked for."""
    max_model_len = config.max_model_len or spec.max_model_len
    if max_model_len > spec.max_model_len:
        raise ConfigError(f"max_model_len is {max_model_len}, but the model's own limit is {spec.max_model_len}")
    return max_model_len


def choose_max_batch_rows(config: EngineConfig, spec: ModelSpec) -> int:
    """Rows of the longest refresh and of all requests' open blocks, or more. Raises ConfigError if less was asked for.

    A refresh of a canvas is indivisible. If it filled a step, one request would have all steps to itself: its blocks
    are smaller and go first, so that no other refresh is computed before this request needs its next refresh.
    Block-causal models have no refreshes. They compute the open block and the one before it, and prompts in parts.
    """
    max_model_len = choose_max_model_len(config, spec)
    block = min(block_length(DiffusionParams(), spec) + spec.shift, max_model_len)
    running = config.max_running_requests
    if spec.is_block_causal:
        least, what = 2 * block * running, f"two blocks, {2 * block} rows,"
    else:
        least = max_model_len + running * block
        what = f"a refresh of max_model_len, {max_model_len} rows, and beside it a block's {block}"
    max_batch_rows = config.max_batch_rows or max(MIN_BATCH_ROWS, least)
    if max_batch_rows < least:
        raise ConfigError(
            f"max_batch_rows is {max_batch_rows}: it must hold {what} for each of max_running_requests, {running}: "
            f"at least {least}; leave it out, or lower one of the others"
        )
    return max_batch_rows


def set_threads(config: EngineConfig, geometry: TransformerConfig) -> None:
    """Sets torch's CPU threads for the process; a small model's products end before a second thread has started.

    Several ranks share the processors.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    elif geometry.num_parameters < SMALL_MODEL:
        torch.set_num_threads(1)
    elif config.tensor_parallel_size > 1:
        torch.set_num_threads(max((os.cpu_count() or 1) // config.tensor_parallel_size, 1))
