"""Divides memory among the weights, one step of the largest size, and the KV pool, which gets the rest. In bytes.

Arithmetic over a geometry, and a query of the device's memory. Knows no model in memory and no requests.
"""

import os

import torch

from engine.core.config import EngineConfig
from engine.core.errors import CapacityError
from engine.kernels.kv.formats import row_bytes, stored_dtype
from engine.kernels.products import ROWS_APART
from engine.models import decoded_bytes, weight_bytes
from engine.models.layers import TransformerConfig
from engine.scoring.slices import TARGETS_AT_ONCE

SCORING_BYTES = 40
"""The most bytes that scoring takes for each logit: ten copies, with noise, top_p and log-probabilities."""

CLASSES, CLASS_BYTES = 64, 2 * 11 * 8
"""Token classes of a typical constraint, and the most bytes that scoring takes for each class of a row: eleven columns
in float64, and their copy that goes to the host. What larger constraints take is not kept for them, since not all rows
of a step are their targets."""


def kv_bytes_per_token(geometry: TransformerConfig, dtype: torch.dtype, stored: torch.dtype) -> int:
    """Bytes of K and V of one position over all layers, `stored` as this, with their scales if they have any; and of
    what the position carries beside its token, in the model's `dtype`."""
    heads = map(geometry.heads_of, range(geometry.num_layers))
    kept = sum(2 * own.kv_heads * row_bytes(own.head_dim, stored) for own in heads)
    return kept + geometry.vector_numbers * dtype.itemsize


def step_bytes(geometry: TransformerConfig, dtype: torch.dtype, max_batch_rows: int, ranks: int = 1) -> int:
    """Temporary bytes of the largest step, beside weights and KV: activations of all its rows, and its scoring.

    All of them may be constrained targets. With several `ranks`, `geometry` is that of one's part, and the bytes are
    rank 0's, which scores the whole vocabulary.

    Does not include the attention weights that d2 reads: float32 [layers, rows, canvas] for each such request; nor what
    evictions compare, some 64 MiB (`engine.kernels.kv.retention`).
    """
    scored = min(max_batch_rows, TARGETS_AT_ONCE)
    vocab_size = geometry.vocab_size * ranks
    row = _row_bytes(geometry, dtype) + min(CLASSES, vocab_size) * CLASS_BYTES
    padding = 2 * ROWS_APART * geometry.moe.num_experts * geometry.dim * dtype.itemsize if geometry.moe else 0
    return max_batch_rows * row + padding + scored * vocab_size * SCORING_BYTES


def _row_bytes(geometry: TransformerConfig, dtype: torch.dtype) -> int:
    """Bytes of one row where a layer is widest: MLP with gate and up, experts, or rotation of q and k in float32."""
    dim, ff, item = geometry.dim, geometry.ff_dim, dtype.itemsize
    heads = [geometry.heads_of(layer) for layer in range(geometry.num_layers)]
    head_dim = max(own.head_dim for own in heads)
    q, kv = geometry.num_heads * head_dim, max(own.kv_heads * own.head_dim for own in heads)
    mlp = (3 * dim + 4 * ff) * item if geometry.num_moe_layers < geometry.num_layers else 0
    rotation = (2 * dim + q + 2 * kv) * item + 3 * (q + kv) * 4
    cos_and_sin, indices = 4 * head_dim, 4 * 8
    return max(mlp, rotation, _row_bytes_of_experts(geometry, dtype)) + cos_and_sin + indices


def _row_bytes_of_experts(geometry: TransformerConfig, dtype: torch.dtype) -> int:
    """Bytes of one row in a layer with experts, whether all its rows go through the same ones or not; 0 without any.

    A row is there once for each of its experts: before and after their MLPs on a CPU, with up to an eighth of padding,
    or as gate and up of the grouped product on CUDA.
    """
    moe, dim = geometry.moe, geometry.dim
    if moe is None:
        return 0
    copies = moe.experts_per_token * max(2 * dim + dim // 4, dim + 2 * moe.ff_dim, 4 * moe.ff_dim)
    one = 4 * max(moe.ff_dim, moe.shared_ff_dim) + dim
    routing = 4 * moe.num_experts * 4 + moe.experts_per_token * 5 * 8
    return (4 * dim + copies + one) * dtype.itemsize + routing


def kv_pool_pages(
    config: EngineConfig,
    geometry: TransformerConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    max_batch_rows: int,
) -> int:
    """Pages of the pool: as configured, else the longest canvas for every running request, as far as memory allows.

    Call it once the weights are loaded. Raises CapacityError if the longest canvas does not fit.
    """
    per_token = kv_bytes_per_token(geometry, dtype, stored_dtype(config.kv_dtype, dtype))
    pages_per_canvas = -(-max_model_len // config.page_size)
    if config.kv_cache_tokens is not None:
        pages = config.kv_cache_tokens // config.page_size
        source = f"kv_cache_tokens is {config.kv_cache_tokens}"
    else:
        step = step_bytes(geometry, dtype, max_batch_rows, config.tensor_parallel_size)
        step += decoded_bytes(geometry, dtype, config.quantization)
        free = max(_free_bytes(config, geometry, dtype, device) - step, 0)
        pages = min(config.max_running_requests * pages_per_canvas, free // (per_token * config.page_size))
        source = (
            f"{free / 2**30:.2f} GiB are left for the KV cache at {per_token / 1024:.0f} KiB a token, beside the "
            f"weights and {step / 2**30:.2f} GiB for a step of {max_batch_rows} rows"
        )
    if pages < pages_per_canvas:
        raise CapacityError(
            f"a canvas of max_model_len {max_model_len} does not fit: {source}, which holds "
            f"{pages * config.page_size} tokens; lower max_model_len or give it more memory"
        )
    return pages


def _free_bytes(config: EngineConfig, geometry: TransformerConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes that the weights leave of this process's share of memory (`memory_fraction`); ranks share a machine's."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(total * (config.memory_fraction or 0.9)) - (total - free)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    share = int(total * (config.memory_fraction or 0.5)) // config.tensor_parallel_size
    return share - weight_bytes(geometry, dtype, config.quantization)
