"""Seconds that a replica's forwards take, and the tokens whose keys and values it holds: by the roofline, over devices.

A replica of several devices splits every product, the heads and the vocabulary among them (tensor parallel, as in
Megatron-LM, arXiv 1909.08053) and adds up rows twice a layer. Norms and residuals are computed on each device.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import torch

from engine.bench.hardware import HARDWARE, Hardware, with_ranks
from engine.bench.roofline.operators import (
    Cost,
    Load,
    attention_operators,
    elementwise_operators,
    head_operators,
    launches,
    product_operators,
)
from engine.bench.roofline.prediction import geometry_of
from engine.core.errors import ConfigError
from engine.execution.budget import kv_bytes_per_token, step_bytes
from engine.execution.graphs import MOST_ROWS
from engine.kernels.kv.formats import stored_dtype
from engine.models import find
from engine.models.layers import TransformerConfig
from engine.models.synthetic import SIZES, TRAINED_BLOCKS

SUM_SECONDS = 10e-6
"""Seconds to begin adding up rows among devices: assumed."""
MEMORY_FRACTION = 0.9
"""As `EngineConfig.memory_fraction` on CUDA."""
DTYPE = torch.bfloat16


class Timer(Protocol):
    """How long a forward takes."""

    def seconds(self, rows: int, scored: int, read: int, pairs: int) -> float:
        """As in `engine.bench.roofline.operators.Load`."""
        ...


def trained_block(model: str) -> int | None:
    """The block of a block-causal model, in tokens; None where rows see the whole canvas. Raises LoadError."""
    if model in SIZES:
        return TRAINED_BLOCKS.get(model)
    return find(model).spec.block_length


class Machine:
    """A replica's devices with a model on them.

    `hardware` is a name in `HARDWARE`, `efficiency` the share of the roofline's speed that is reached. Raises LoadError
    on a model that cannot be served, ConfigError if its heads do not divide among the devices.
    """

    def __init__(
        self,
        model: str,
        hardware: str,
        *,
        devices: int = 1,
        efficiency: float = 0.5,
        kv_dtype: str = "auto",
        max_batch_rows: int,
    ) -> None:
        self.model, self.geometry, self.devices = model, geometry_of(model), devices
        if self.geometry.num_heads % devices:
            raise ConfigError(f"{self.geometry.num_heads} heads do not divide among {devices} devices")
        self._device = one = with_ranks(HARDWARE[hardware], devices)
        self._together = replace(
            one,
            flops=one.flops * devices,
            weight_flops=one.weight_flops * devices,
            bandwidth=one.bandwidth * devices,
        )
        self._efficiency, self._kv_dtype, self._max_batch_rows = efficiency, kv_dtype, max_batch_rows
        self._kv_parts = min(devices, self.geometry.num_kv_heads)
        self._starting = launches(self.geometry) * one.launch_seconds
        """Seconds in which the host starts the kernels of a forward that is no graph."""
        self._of_rows: dict[int, float] = {}
        self._of_scored: dict[int, float] = {}

    @property
    def weight_bytes(self) -> float:
        """On each device."""
        return self.geometry.weight_bytes(DTYPE) / self.devices

    @property
    def kv_tokens(self) -> int:
        """Positions whose keys and values fit beside the weights and the largest step.

        Of fewer heads of keys than devices, several devices hold the same. Raises ConfigError if none fit.
        """
        memory = MEMORY_FRACTION * (self._device.memory_bytes or 0)
        free = memory - self.weight_bytes - step_bytes(self.geometry, DTYPE, self._max_batch_rows)
        per_token = kv_bytes_per_token(self.geometry, DTYPE, stored_dtype(self._kv_dtype, DTYPE))
        tokens = int(free * self._kv_parts / per_token)
        if tokens <= 0:
            raise ConfigError(
                f"{self.model} does not fit on {self.devices} x {self._device.name}: weights take "
                f"{self.weight_bytes / 1e9:.1f} of {memory / 1e9:.1f} GB on each; give a replica more --devices"
            )
        return tokens

    def seconds(self, rows: int, scored: int, read: int, pairs: int) -> float:
        """Of one forward of so many rows. See `Timer`."""
        load = Load(rows, scored, read * self.devices // self._kv_parts, pairs, kv_dtype=self._kv_dtype)
        if (of_rows := self._of_rows.get(rows)) is None:
            of_rows = self._of_rows[rows] = (
                _seconds(product_operators, self.geometry, self._together, load)
                + _seconds(elementwise_operators, self.geometry, self._device, load)
                + self._sums(rows)
            )
        if (of_scored := self._of_scored.get(scored)) is None:
            of_scored = self._of_scored[scored] = _seconds(head_operators, self.geometry, self._together, load)
        bound = of_rows + of_scored + _seconds(attention_operators, self.geometry, self._together, load)
        return max(bound, self._starting if rows > MOST_ROWS else 0.0) / self._efficiency

    def _sums(self, rows: int) -> float:
        """Seconds of adding up all layers' rows among the devices, in a ring: each sends its share twice."""
        if self.devices == 1 or self._device.link_bandwidth is None:
            return 0.0
        sent = 2 * (self.devices - 1) / self.devices * rows * self.geometry.dim * self._device.itemsize
        return 2 * self.geometry.num_layers * (SUM_SECONDS + sent / self._device.link_bandwidth)


def _seconds(
    operators: Callable[[TransformerConfig, Hardware, Load], Iterable[Cost]],
    geometry: TransformerConfig,
    hardware: Hardware,
    load: Load,
) -> float:
    return sum(cost.bound_seconds for cost in operators(geometry, hardware, load))
