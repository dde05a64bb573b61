"""The least time of a whole workload: every step's forwards, on one device or on each rank of several."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from engine.bench.hardware import Hardware
from engine.bench.method import Method
from engine.bench.roofline.operators import (
    Cost,
    Load,
    attention_operators,
    elementwise_operators,
    head_operators,
    kv_bytes,
    launches,
    product_operators,
)
from engine.bench.roofline.steps import Step, steps
from engine.bench.timed_run import Workload
from engine.core.errors import ConfigError
from engine.models import find
from engine.models.layers import TransformerConfig
from engine.models.ranks.cut import Rank, check_divides
from engine.models.ranks.join import Rows, sums
from engine.models.synthetic import SIZES, geometry_named

GEOMETRIES = SIZES
"""Models known by name."""


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
    per_token = 2 * geometry.num_layers * kv_bytes(part, hardware, Method.named(method).kv_dtype)
    taken = part.num_parameters * hardware.weight_itemsize + workload.batch * workload.length * per_token
    return Prediction(
        method=method,
        batch=workload.batch,
        rows=rows * repeats,
        forwards=forwards * repeats,
        cost=total,
        tokens_per_second=workload.batch * workload.gen / total.seconds,
        fits=hardware.memory_bytes is None or taken <= 0.9 * hardware.memory_bytes,
    )


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


def _operators(geometry: TransformerConfig, hardware: Hardware, step: Step, requests: int) -> Iterator[Cost]:
    """Of all requests' rows."""
    rows, read = step.rows * requests, step.visible * requests
    load = Load(rows, step.scored * requests, read, rows * step.visible, step.watched, step.kv_dtype)
    for part in (product_operators, attention_operators, elementwise_operators, head_operators):
        yield from part(geometry, hardware, load)
