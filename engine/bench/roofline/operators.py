"""What the operators of one forward cost: operations and bytes, and their time at a machine's peak rates.

By the roofline model (Williams et al., 2009): each operator takes the longer of its operations at the peak rate and its
bytes at the peak bandwidth. Counts operators as `engine.models.layers` has them; measures nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from engine.bench.hardware import Hardware
from engine.kernels.kv.formats import is_quantised, row_bytes, stored_dtype
from engine.models.layers import TransformerConfig

LAUNCHES_PER_LAYER = 28
"""Kernels of `engine.models.layers.Block` and the context around it, as PyTorch runs them one by one; attention of all
requests is one of them. Counted on a device that is not there (tests/engine/test_fake_cuda.py)."""

QK_NORM_LAUNCHES = 5
"""Kernels more where a layer norms its queries and keys. Counted likewise."""

MOE_LAUNCHES = 18
"""Kernels more where a layer has experts in place of an MLP. Counted likewise, for normalised softmax scores."""


@dataclass(frozen=True, slots=True)
class Load:
    """What all requests of a forward ask together."""

    rows: int
    scored: int
    read: int
    """Positions whose keys and values are read: those that each request sees, over all requests."""
    pairs: int
    """Pairs of a row and a position that it attends to."""
    watched: bool = False
    kv_dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one or more forwards; costs can be added."""

    flops: float = 0.0
    bytes: float = 0.0
    bound_seconds: float = 0.0
    """Each operator at its own roofline, one after the other."""
    compute_seconds: float = 0.0
    """The part of `bound_seconds` in compute-bound operators; memory bandwidth bounds the others."""
    seconds: float = 0.0
    """`bound_seconds` with the time that the host takes to start kernels."""
    sent: float = 0.0
    """Bytes that each device sends to the others, where there are several; all figures are of one device."""

    @property
    def compute_share(self) -> float:
        """Share of `bound_seconds` in compute-bound operators."""
        return self.compute_seconds / self.bound_seconds

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.bound_seconds + other.bound_seconds,
            self.compute_seconds + other.compute_seconds,
            self.seconds + other.seconds,
            self.sent + other.sent,
        )

    def times(self, count: int) -> "Cost":
        """Of so many such forwards, or operators."""
        return Cost(
            self.flops * count,
            self.bytes * count,
            self.bound_seconds * count,
            self.compute_seconds * count,
            self.seconds * count,
            self.sent * count,
        )


def launches(geometry: TransformerConfig) -> int:
    """Kernels that all layers of this geometry start."""
    per_layer = LAUNCHES_PER_LAYER + QK_NORM_LAUNCHES * geometry.qk_norm
    return geometry.num_layers * per_layer + geometry.num_moe_layers * MOE_LAUNCHES


def product_operators(geometry: TransformerConfig, hardware: Hardware, load: Load) -> Iterator[Cost]:
    """Products with weights of all layers, and what goes between those of an MLP or of experts."""
    rows, dim = load.rows, geometry.dim
    q, kv = geometry.num_heads * geometry.head_dim, geometry.num_kv_heads * geometry.head_dim

    def passed(numbers: float) -> Cost:
        return _bound(hardware, 0.0, numbers * hardware.itemsize, hardware.flops)

    def mlp(width: int, count: int = rows, weights: float = 1.0) -> list[Cost]:
        up, down = _product(hardware, count, dim, 2 * width, weights), _product(hardware, count, width, dim, weights)
        return [up, down, passed(count * 3 * width)]

    for operator in (_product(hardware, rows, dim, q + 2 * kv), _product(hardware, rows, q, dim)):
        yield operator.times(geometry.num_layers)
    for operator in mlp(geometry.ff_dim):
        yield operator.times(geometry.num_layers - geometry.num_moe_layers)
    if moe := geometry.moe:
        copies = rows * moe.experts_per_token
        # Routers that choose all experts alike: so many of them have at least one row.
        read = moe.num_experts * (1.0 - (1.0 - moe.experts_per_token / moe.num_experts) ** rows)
        experts = [
            _product(hardware, rows, dim, moe.num_experts),
            *mlp(moe.ff_dim, copies, read),
            *(mlp(moe.shared_ff_dim) if moe.shared_ff_dim else ()),
            passed((3 * copies + 2 * rows) * dim),  # rows to their experts, and their sums
        ]
        for operator in experts:
            yield operator.times(geometry.num_moe_layers)


def attention_operators(geometry: TransformerConfig, hardware: Hardware, load: Load) -> Iterator[Cost]:
    """Attention of all layers. Keys and values are read once for each request."""
    q = geometry.num_heads * geometry.head_dim
    moved = 2 * load.read * kv_bytes(geometry, hardware, load.kv_dtype) + 2 * load.rows * q * hardware.itemsize
    if load.watched:  # float32, written and read
        moved += 2 * load.pairs * geometry.num_heads * 4
    yield _bound(hardware, 4.0 * load.pairs * q, moved, hardware.flops).times(geometry.num_layers)


def elementwise_operators(geometry: TransformerConfig, hardware: Hardware, load: Load) -> Iterator[Cost]:
    """Two norms, two residual sums, rotation, norms of q and k, K and V into their slots; each in one pass."""
    dim, q, kv = geometry.dim, geometry.num_heads * geometry.head_dim, geometry.num_kv_heads * geometry.head_dim
    numbers = 10 * dim + 2 * (q + kv) * (1 + geometry.qk_norm) + 2 * kv
    moved = numbers * hardware.itemsize + 2 * kv_bytes(geometry, hardware, load.kv_dtype)
    yield _bound(hardware, 0.0, load.rows * moved, hardware.flops).times(geometry.num_layers)


def head_operators(geometry: TransformerConfig, hardware: Hardware, load: Load) -> Iterator[Cost]:
    """The output head over the scored rows, and one pass over its logits."""
    yield _product(hardware, load.scored, geometry.dim, geometry.vocab_size)
    yield _bound(hardware, 0.0, load.scored * geometry.vocab_size * hardware.itemsize, hardware.flops)


def kv_bytes(geometry: TransformerConfig, hardware: Hardware, kv_dtype: str) -> int:
    """Bytes of the keys, or of the values, of one position in one layer."""
    own = geometry.head_dim * hardware.itemsize
    stored = stored_dtype(kv_dtype, torch.float32)
    return geometry.num_kv_heads * (row_bytes(geometry.head_dim, stored) if is_quantised(stored) else own)


def _bound(hardware: Hardware, flops: float, moved: float, peak: float) -> Cost:
    computing, moving = flops / peak, moved / hardware.bandwidth
    seconds = max(computing, moving)
    return Cost(flops, moved, seconds, seconds if computing >= moving else 0.0)


def _product(hardware: Hardware, count: int, of: int, to: int, weights: float = 1.0) -> Cost:
    """`count` rows, each through one of `weights` matrices that are read."""
    moved = weights * of * to * hardware.weight_itemsize + count * (of + to) * hardware.itemsize
    return _bound(hardware, 2.0 * count * of * to, moved, hardware.weight_flops)
