"""The model and its KV pool on a device: turns a batch into the logits of its target rows.

Chooses device, dtype, attention kernel and pool size once, at start. Knows no requests and no policies.
"""

import os
from typing import NamedTuple

import torch
from torch import Tensor

from engine.attention import Kernel, KVPool, PagedContext, attend_segments
from engine.batch import Batch
from engine.config import EngineConfig, ModelSpec
from engine.errors import CapacityError, ConfigError
from engine.flex import FlexKernel, largest_tile
from engine.models.layers import Transformer, TransformerConfig
from engine.request import Ids
from engine.rollout import column_sums
from engine.transfer import to_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SMALL_MODEL = 10_000_000
"""Parameters below which one CPU thread is the fastest."""


class Answer(NamedTuple):
    """What the model says of a batch, still on the device."""

    logits: Tensor
    """[targets, vocab_size]"""
    importance: list[Tensor]
    """For each plan that asks for the rollout: float32 [canvas end], the attention that reaches each position."""


class Runner:
    """Holds weights and KV; `forward` is the engine's only heavy call."""

    def __init__(
        self, model: Transformer, pool: KVPool, device: torch.device, kernel: Kernel = attend_segments
    ) -> None:
        self.model = model
        self.pool = pool
        self.device = device
        self.kernel = kernel

    def forward(self, batch: Batch) -> Answer:
        """Writes K and V of the batch's rows, scores its targets."""
        context = PagedContext(self.pool, batch.slots, batch.segments, self.kernel, batch.watched)
        hidden = self.model(batch.ids, batch.positions, context)
        importance = [
            column_sums(layers, batch.positions[segment.start : segment.stop], layers[0].shape[-1])
            for segment, layers in batch.watched
        ]
        return Answer(self.model.logits(hidden[batch.logit_rows]), importance)

    def clear(self, slots: Ids) -> None:
        """Makes numbers of what these slots hold, before they are another's."""
        self.pool.clear(to_device(slots, self.device))

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())


def choose_device(config: EngineConfig) -> torch.device:
    """`auto` is CUDA where there is one. Raises ConfigError if the device named is not here."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
    except RuntimeError:
        raise ConfigError(f"device {config.device!r} is no torch device; try cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {config.device!r} was asked for, but torch sees no CUDA device")
    return device


def choose_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA; on CPUs without its instructions bfloat16 can be 100 times slower than float32."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[config.dtype]


def choose_kernel(config: EngineConfig, device: torch.device, max_batch_rows: int) -> Kernel:
    """Raises ConfigError if pages cannot be cut into what the kernel takes at once."""
    if config.attention == "sdpa":
        return attend_segments
    if device.type == "cuda" and largest_tile(config.page_size) < 16:
        raise ConfigError(f"attention is 'flex', which needs a page_size of whole 16s; it is {config.page_size}")
    return FlexKernel(config.page_size, max_batch_rows)


def choose_max_model_len(config: EngineConfig, spec: ModelSpec) -> int:
    """The model's own limit, or less. Raises ConfigError if more was asked for."""
    max_model_len = config.max_model_len or spec.max_model_len
    if max_model_len > spec.max_model_len:
        raise ConfigError(f"max_model_len is {max_model_len}, but the model's own limit is {spec.max_model_len}")
    return max_model_len


def set_threads(config: EngineConfig, geometry: TransformerConfig) -> None:
    """Sets torch's CPU threads for the process; a small model's products are over before a second thread has woken."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    elif geometry.num_parameters < SMALL_MODEL:
        torch.set_num_threads(1)


def kv_bytes_per_token(geometry: TransformerConfig, dtype: torch.dtype) -> int:
    """K and V of one position over all layers."""
    return 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim * dtype.itemsize


def kv_pool_pages(
    config: EngineConfig, geometry: TransformerConfig, dtype: torch.dtype, device: torch.device, max_model_len: int
) -> int:
    """Pages of the pool: what was asked for, else every running request's longest canvas, as far as memory goes.

    Call it once the weights are loaded. Raises CapacityError if the longest canvas does not fit.
    """
    per_token = kv_bytes_per_token(geometry, dtype)
    pages_per_canvas = -(-max_model_len // config.page_size)
    if config.kv_cache_tokens is not None:
        pages = config.kv_cache_tokens // config.page_size
        source = f"kv_cache_tokens is {config.kv_cache_tokens}"
    else:
        free = _free_bytes(config, geometry, dtype, device)
        pages = min(config.max_running_requests * pages_per_canvas, max(free, 0) // (per_token * config.page_size))
        source = f"{max(free, 0) / 2**30:.2f} GiB are left for the KV cache at {per_token / 1024:.0f} KiB a token"
    if pages < pages_per_canvas:
        raise CapacityError(
            f"a canvas of max_model_len {max_model_len} does not fit: {source}, which holds "
            f"{pages * config.page_size} tokens; lower max_model_len or give it more memory"
        )
    return pages


def _free_bytes(config: EngineConfig, geometry: TransformerConfig, dtype: torch.dtype, device: torch.device) -> int:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(total * (config.memory_fraction or 0.9)) - (total - free)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(total * (config.memory_fraction or 0.5)) - geometry.num_parameters * dtype.itemsize
