"""The least cost of decoding: operations and bytes of every step, and their time at a machine's peak rates.

By the roofline model (Williams et al., 2009): each operator takes the longer of its operations at the peak rate and its
bytes at the peak bandwidth. Counts rows as `engine.cache` plans them and operators as `engine.models.layers` has them;
measures nothing.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from engine.bench.hardware import Hardware
from engine.bench.method import Method
from engine.bench.timed_run import Workload
from engine.core.errors import ConfigError
from engine.core.params import DiffusionParams
from engine.kernels.kv.formats import is_quantised, row_bytes, stored_dtype
from engine.models import find
from engine.models.layers import TransformerConfig
from engine.models.ranks.cut import Rank, check_divides
from engine.models.ranks.join import Rows, sums
from engine.models.synthetic import SIZES, geometry_named

Kind = Literal["refresh", "step"]

LAUNCHES_PER_LAYER = 28
"""Kernels of `engine.models.layers.Block` and the context around it, as PyTorch runs them one by one; attention of all
requests is one of them. Counted on a device that is not there (tests/engine/test_fake_cuda.py)."""
QK_NORM_LAUNCHES = 5
"""Kernels more where a layer norms its queries and keys. Counted likewise."""
MOE_LAUNCHES = 18
"""Kernels more where a layer has experts in place of an MLP. Counted likewise, for normalised softmax scores."""

GEOMETRIES = SIZES
"""Models known by name."""
DEFAULTS = DiffusionParams()


@dataclass(frozen=True, slots=True)
class Step:
    """What one request asks of one forward."""

    kind: Kind
    """`refresh` opens a block. Without cheaper steps within a block, every step is a `refresh`."""
    rows: int
    scored: int
    """Rows that the output head computes."""
    visible: int
    """Positions that each row attends to."""
    watched: bool = False
    """Whether attention weights are written and read once more (d2)."""
    kv_dtype: str = "auto"
    """As in `EngineConfig`: how keys and values are stored."""


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
        return Cost(
            self.flops * count,
            self.bytes * count,
            self.bound_seconds * count,
            self.compute_seconds * count,
            self.seconds * count,
            self.sent * count,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A whole workload under one method."""

    method: str
    batch: int
    rows: int
    """Over all requests."""
    forwards: int
    cost: Cost
    tokens_per_second: float
    fits: bool
    """Weights and the KV of all canvases take at most nine tenths of the memory, of each device its part."""


def geometry_of(model: str) -> TransformerConfig:
    """The geometry of a name in `GEOMETRIES`, or by the `config.json` of a folder or hub id.

    Raises LoadError if that cannot be served, ConfigError if its layers are not those that are counted here.
    """
    if model in GEOMETRIES:
        return geometry_named(model, max_model_len=1)
    geometry = find(model).geometry
    if geometry.sandwich:
        raise ConfigError(
            f"the roofline counts layers that are all alike: {model} has layers of other heads and windows, and each "
            "has an MLP beside its experts"
        )
    return geometry


def launches(geometry: TransformerConfig) -> int:
    """Kernels that all layers of this geometry start."""
    per_layer = LAUNCHES_PER_LAYER + QK_NORM_LAUNCHES * geometry.qk_norm
    return geometry.num_layers * per_layer + geometry.num_moe_layers * MOE_LAUNCHES


@functools.cache
def predict(
    method: str, geometry: TransformerConfig, hardware: Hardware, workload: Workload, max_batch_rows: int
) -> Prediction:
    """Predicts the workload with all requests in lockstep, as if admitted at once; a reference loop runs one at a time.

    Raises ConfigError if `method` names none (`engine.bench.method`), or if the model cannot be cut for the hardware's
    ranks.
    """
    check_divides(geometry, hardware.ranks)
    together = 1 if method.startswith("reference/") else workload.batch
    rows, forwards, total = 0, 0, Cost()
    for step in steps(method, workload):
        for requests in _forwards(step.rows, together, max_batch_rows):
            total += forward_cost(geometry, hardware, step, requests)
            forwards += 1
        rows += step.rows * together
    repeats = workload.batch // together
    total = total.times(repeats)
    part = Rank(0, hardware.ranks).geometry(geometry)
    kv_bytes = 2 * geometry.num_layers * _kv_bytes(part, hardware, Method.named(method).kv_dtype)
    taken = part.num_parameters * hardware.weight_itemsize + workload.batch * workload.length * kv_bytes
    return Prediction(
        method=method,
        batch=workload.batch,
        rows=rows * repeats,
        forwards=forwards * repeats,
        cost=total,
        tokens_per_second=workload.batch * workload.gen / total.seconds,
        fits=hardware.memory_bytes is None or taken <= 0.9 * hardware.memory_bytes,
    )


def steps(name: str, workload: Workload) -> Iterator[Step]:
    """Every step of one request. Raises ConfigError if no method has this name."""
    method = Method.named(name)
    cache, pace = method.cache, 1 if method.is_baseline else workload.tokens_per_step
    fresh = 0
    for start in range(workload.prompt, workload.length, workload.block):
        end, visible = start + workload.block, workload.length
        if method.lookahead is not None:
            visible = min(end + method.lookahead, visible)
        for done in range(0, workload.block, pace):
            kind: Kind = "step" if done and cache in ("prefix", "dual", "window", "delayed") else "refresh"
            if cache == "d2":
                kind = "step" if done or start > workload.prompt else "refresh"
            rows = _rows(cache, kind, start, done, visible, workload)
            if start > workload.prompt and not done and cache in ("window", "delayed", "d2"):
                rows += _beyond(cache, end, fresh, visible)
            scored = rows if method.where == "reference" else workload.block - done
            if cache == "d2":
                masked = visible - start - done
                scored = masked if kind == "refresh" else min(DEFAULTS.current_k, masked)
            yield Step(kind, rows, scored, visible, watched=cache == "d2", kv_dtype=method.kv_dtype)
        fresh = visible


def _rows(cache: str, kind: Kind, start: int, done: int, visible: int, workload: Workload) -> int:
    """Rows of a step in the block at `start`, without those that become visible with the block."""
    match cache, kind:
        case "prefix", "step":
            return visible - start
        case (("dual" | "window"), "step"):
            return workload.block
        case "delayed", "step":
            return workload.block - done + workload.tokens_per_step
        case (("window" | "delayed"), "refresh") if start > workload.prompt:
            end = min(start + workload.block + DEFAULTS.refresh_after, visible)
            return end - max(start - DEFAULTS.refresh_before, 0)
        case "d2", "step":
            return _d2_rows(visible, workload)
    return visible


def _beyond(cache: str, block_end: int, fresh: int, visible: int) -> int:
    """Positions that become visible with a block and are not computed for another reason."""
    reached = block_end + DEFAULTS.refresh_after if cache in ("window", "delayed") else fresh
    return max(visible - max(fresh, reached), 0)


def _d2_rows(visible: int, workload: Workload) -> int:
    """Rows of d2 depend on the model's output. Here attention reaches all positions alike, which gives the most rows.

    They are the best ranked, those that the last step decoded, and the share `rollout_p` of the rest.
    """
    first = min(DEFAULTS.current_k + workload.tokens_per_step, visible)
    return first + round(DEFAULTS.rollout_p * (visible - first))


def _forwards(rows: int, requests: int, max_batch_rows: int) -> Iterator[int]:
    """How many requests each forward serves, when one holds no more rows than `max_batch_rows`."""
    at_once = max(max_batch_rows // rows, 1)
    for first in range(0, requests, at_once):
        yield min(at_once, requests - first)


@functools.cache
def forward_cost(geometry: TransformerConfig, hardware: Hardware, step: Step, requests: int) -> Cost:
    """One forward of `requests` such steps; with several ranks, one rank's part of it."""
    part, exchanged = Rank(0, hardware.ranks).geometry(geometry), list(_sums(geometry, hardware, step.rows * requests))
    total = functools.reduce(Cost.__add__, (*_operators(part, hardware, step, requests), *exchanged), Cost())
    starting = (launches(part) + len(exchanged)) * hardware.launch_seconds
    seconds = max(total.bound_seconds, starting) if hardware.launches_overlap else total.bound_seconds + starting
    return replace(total, seconds=seconds)


def _sums(geometry: TransformerConfig, hardware: Hardware, rows: int) -> Iterator[Cost]:
    """The sums over all ranks. In a ring, each sends every number twice but for its own part (all-reduce)."""
    if hardware.ranks == 1 or hardware.link_bandwidth is None:
        return
    for count, width in sums(geometry, Rows(rows, rows, is_adapted=False, is_open=False)):
        sent = 2.0 * (hardware.ranks - 1) / hardware.ranks * count * width * hardware.itemsize
        yield Cost(bound_seconds=sent / hardware.link_bandwidth, sent=sent)


def _kv_bytes(geometry: TransformerConfig, hardware: Hardware, kv_dtype: str) -> int:
    """Bytes of the keys, or of the values, of one position in one layer."""
    own = geometry.head_dim * hardware.itemsize
    stored = stored_dtype(kv_dtype, torch.float32)
    return geometry.num_kv_heads * (row_bytes(geometry.head_dim, stored) if is_quantised(stored) else own)


def _operators(geometry: TransformerConfig, hardware: Hardware, step: Step, requests: int) -> Iterator[Cost]:
    """Of all requests' rows."""
    rows, read = step.rows * requests, step.visible * requests
    load = Load(rows, step.scored * requests, read, rows * step.visible, step.watched, step.kv_dtype)
    for part in (product_operators, attention_operators, elementwise_operators, head_operators):
        yield from part(geometry, hardware, load)


def _bound(hardware: Hardware, flops: float, moved: float, peak: float) -> Cost:
    computing, moving = flops / peak, moved / hardware.bandwidth
    seconds = max(computing, moving)
    return Cost(flops, moved, seconds, seconds if computing >= moving else 0.0)


def _product(hardware: Hardware, count: int, of: int, to: int, weights: float = 1.0) -> Cost:
    """`count` rows, each through one of `weights` matrices that are read."""
    moved = weights * of * to * hardware.weight_itemsize + count * (of + to) * hardware.itemsize
    return _bound(hardware, 2.0 * count * of * to, moved, hardware.weight_flops)


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
    moved = 2 * load.read * _kv_bytes(geometry, hardware, load.kv_dtype) + 2 * load.rows * q * hardware.itemsize
    if load.watched:  # float32, written and read
        moved += 2 * load.pairs * geometry.num_heads * 4
    yield _bound(hardware, 4.0 * load.pairs * q, moved, hardware.flops).times(geometry.num_layers)


def elementwise_operators(geometry: TransformerConfig, hardware: Hardware, load: Load) -> Iterator[Cost]:
    """Two norms, two residual sums, rotation, norms of q and k, K and V into their slots; each in one pass."""
    dim, q, kv = geometry.dim, geometry.num_heads * geometry.head_dim, geometry.num_kv_heads * geometry.head_dim
    numbers = 10 * dim + 2 * (q + kv) * (1 + geometry.qk_norm) + 2 * kv
    moved = numbers * hardware.itemsize + 2 * _kv_bytes(geometry, hardware, load.kv_dtype)
    yield _bound(hardware, 0.0, load.rows * moved, hardware.flops).times(geometry.num_layers)


def head_operators(geometry: TransformerConfig, hardware: Hardware, load: Load) -> Iterator[Cost]:
    """The output head over the scored rows, and one pass over its logits."""
    yield _product(hardware, load.scored, geometry.dim, geometry.vocab_size)
    yield _bound(hardware, 0.0, load.scored * geometry.vocab_size * hardware.itemsize, hardware.flops)
