"""The model and its KV pool on a device: turns a batch into the logits of its target rows.

Chooses device, dtype, attention kernel and row budget once, at start-up. Knows no requests and no policies.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.core.arrays import Ids
from engine.core.config import EngineConfig, ModelSpec
from engine.core.errors import ConfigError
from engine.core.params import DiffusionParams, block_length
from engine.execution.batch import Batch
from engine.execution.budget import SCORING_BYTES
from engine.execution.graphs import Graphs, Replay, Shape, record
from engine.kernels.attention import Heads, Kernel, PagedContext, agrees, attend_spans
from engine.kernels.experts.mlps import has_grouped_products
from engine.kernels.kv.formats import stored_dtype
from engine.kernels.kv.pool import KVPool, LayeredKVPool
from engine.kernels.rollout import column_sums
from engine.kernels.transfer import Upload, to_device
from engine.models.layers import Transformer, TransformerConfig
from engine.models.noised import NoisedTransformer
from engine.models.quantised.schemes import stored_bytes
from engine.models.sandwich import OpenRows
from engine.scoring.slices import TARGETS_AT_ONCE, Rows

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MIN_BATCH_ROWS = 2048
"""The least default row budget, for short canvases and few requests: enough for several refreshes at once."""

MOVED_AT_ONCE = 4096
"""Slots copied at once: each layer's are held twice meanwhile."""

SMALL_MODEL = 10_000_000
"""Parameters below which one CPU thread is the fastest."""


@dataclass(frozen=True, slots=True)
class TargetLogits:
    """[targets, vocab_size], each row computed when it is asked for: all at once may be gigabytes."""

    runner: "Runner"
    hidden: Tensor
    """[targets, dim]"""
    vector_slots: Tensor | None = None
    """int64 [targets] where `remember` writes, if the model remembers anything."""

    def __getitem__(self, some: slice) -> Tensor:
        return self.runner.head(self.hidden[some])

    @property
    def proposed_at_once(self) -> int:
        return TARGETS_AT_ONCE * SCORING_BYTES // max(self.runner.bytes_per_proposal, 1)

    def propose(self, some: slice, mask_id: int | None) -> tuple[Tensor, Tensor]:
        return self.runner.propose(self.hidden[some], mask_id)

    def part(self, indices: Tensor) -> "TargetLogits":
        slots = None if self.vector_slots is None else self.vector_slots[indices]
        return TargetLogits(self.runner, self.hidden[indices], slots)

    def remember(self, some: slice, rows: Rows, probabilities: Tensor) -> None:
        assert self.vector_slots is not None, "a model whose rows carry nothing beside their tokens"
        self.runner.remember(rows.of(self.vector_slots[some]), probabilities)


class ModelOutput(NamedTuple):
    """The model's output for a batch, still on the device."""

    logits: TargetLogits
    importance: list[Tensor]
    """For each plan that asks for the rollout: float32 [visible end], the attention that reaches each position."""
    retention: list[Tensor]
    """For each plan whose eviction asks for it: float32 [candidates], what each is worth keeping."""


class Runner:
    """Holds weights and KV; `forward` is the engine's only expensive call."""

    def __init__(
        self, model: Transformer, pool: KVPool | LayeredKVPool, device: torch.device, kernel: Kernel = attend_spans
    ) -> None:
        self.model = model
        self.pool = pool
        self.device = device
        self.kernel = kernel
        config = model.config
        self._windowed = frozenset(layer for layer in range(config.num_layers) if config.window_of(layer))
        self._vectors = _block_vectors(model, pool.dump, device)
        self.graphs: Graphs | None = None
        """Of small steps, once they are captured; None where all steps are launched kernel by kernel."""

    def capture(self, shapes: Sequence[Shape]) -> None:
        """Makes `graphs` of the forward, if that works here. Its kernel must read page tables only."""
        self.graphs = record(shapes, self.hidden, self.device)

    def forward(self, batch: Batch | Replay) -> ModelOutput:
        """Writes K and V of the batch's rows. The head runs only when targets' logits are read (`TargetLogits`)."""
        if isinstance(batch, Replay):
            return ModelOutput(TargetLogits(self, batch.run()), [], [])
        hidden = self.hidden(batch)
        importance = [
            column_sums(layers, batch.positions[segment.start : segment.stop], layers[0].shape[-1])
            for segment, layers in batch.watched
        ]
        retention = [torch.stack(each.layers).sum(dim=0) for each in batch.judged]
        logits = TargetLogits(self, hidden, batch.open_rows.write if batch.open_rows else None)
        return ModelOutput(logits, importance, retention)

    def hidden(self, batch: Batch) -> Tensor:
        """[targets, dim], kernel by kernel. Fills the layers of the batch's watched segments."""
        windowed = batch.windowed, self._windowed
        context = PagedContext(
            self.pool, batch.slots, batch.layout, self.kernel, batch.watched, *windowed, batch.judged
        )
        if batch.open_rows:
            assert self._vectors is not None, "random tokens of a model that has a mask"
            open_rows = OpenRows(batch.open_rows.is_open, self._vectors[batch.open_rows.read])
            hidden: Tensor = self.model(batch.ids, batch.positions, context, batch.logit_rows, open_rows=open_rows)
        else:
            hidden = self.model(batch.ids, batch.positions, context, batch.logit_rows, batch.adapted)
        return hidden

    def remember(self, slots: Tensor, probabilities: Tensor) -> None:
        """Writes what rows carry next, where `batch.vector_index` says, by float32 probabilities [some, vocab]."""
        assert isinstance(self.model, NoisedTransformer)
        assert self._vectors is not None
        self._vectors[slots] = self.model.vectors(probabilities)

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [some, dim] -> logits [some, vocab_size]."""
        return self.model.logits(hidden)

    def propose(self, hidden: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
        """hidden [some, dim] -> the best tokens [some] but the mask, and their log-odds [some]."""
        return self.model.propose(hidden, mask_id)

    def move(self, sources: Ids, destinations: Ids) -> None:
        """Copies keys and values of some slots to others, behind all that was launched before.

        A slot that is written may be read before, not after it. All layers' heads are alike.
        """
        assert isinstance(self.pool, KVPool), "keys and values of unlike layers are not moved"
        for first in range(0, len(sources), MOVED_AT_ONCE):
            some = slice(first, first + MOVED_AT_ONCE)
            upload = Upload(self.device)
            moved = [upload.add(slots[some]) for slots in (sources, destinations)]
            upload.send()
            self.pool.move(*(slots.tensor for slots in moved))

    def clear(self, slots: Ids) -> None:
        """Zeroes keys and values of these slots.

        A failed request may have left NaN, which a kernel whose weights are zero would spread.
        """
        self.pool.clear(to_device(slots, self.device))

    def everywhere(self, work: Callable[..., None], *arguments: Any) -> None:
        """`work(runner, *arguments)`, a function of a module: on every rank, where there are several."""
        work(self, *arguments)

    def check(self) -> None:
        """Raises DeviceLost if no call can succeed any more, as far as that is known without a call."""

    @property
    def bytes_per_proposal(self) -> int:
        """Bytes that `propose` takes for each logit of the vocabulary."""
        return self.model.bytes_per_proposal

    @property
    def kv_bytes(self) -> int:
        """Of all slots but the dump: keys and values, and what positions carry beside their tokens."""
        vectors = self.pool.dump * self.model.config.vector_numbers * self.model.embed.element_size()
        return self.pool.num_bytes + vectors

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def weight_bytes(self) -> int:
        return sum(map(stored_bytes, self.model.parameters()))


def _block_vectors(model: Transformer, dump: int, device: torch.device) -> Tensor | None:
    """[2 * (slots + 1), dim] what positions carry beside their tokens, in two turns; None if they carry nothing.

    Rows that carry nothing yet read those of the dump, which nobody writes.
    """
    if not model.config.vector_numbers:
        return None
    vectors = torch.empty(2 * (dump + 1), model.config.dim, dtype=model.embed.dtype, device=device)
    vectors[dump].zero_()
    return vectors


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


def make_pool(
    geometry: TransformerConfig, slots: int, dtype: torch.dtype, device: torch.device, prune: float = 0.0
) -> KVPool | LayeredKVPool:
    """An empty pool of so many slots, for the heads of the model's layers. `prune`: see `EngineConfig.kv_prune`."""
    heads = [geometry.heads_of(layer)[:2] for layer in range(geometry.num_layers)]
    if len(set(heads)) == 1:
        return KVPool(geometry.num_layers, slots, *heads[0], dtype, device, prune)
    return LayeredKVPool(heads, slots, dtype, device, prune)


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
