"""The gated MLPs of a layer's experts: each row through those that were chosen for it, summed by their weights.

Rows are sorted by expert, so that each expert's are multiplied at once. A CPU knows how many each has, and pads their
number as `products.linear` does: a row's result is the same bit by bit in any company. On CUDA nothing is read back:
the grouped product finds the ends of the groups on the device.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.products import Activation, gated, linear, rounded_rows

_GROUPED_ARCHITECTURE = 9
"""CUDA compute capability from which torch has a grouped product that does not wait for the host: Hopper's."""


class Stacked(Protocol):
    """A weight of each expert: one tensor [experts, out, in], or packed ones [out, in]."""

    def __len__(self) -> int: ...

    def __getitem__(self, expert: int, /) -> Tensor: ...


def expert_mlps(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Stacked, down: Stacked, activation: Activation = "silu"
) -> Tensor:
    """x [rows, dim] -> [rows, dim], the sum over a row's experts of weight * MLP.

    chosen (int64) and weights (float32) [rows, experts of a row]; gate_up [2 * width, dim] of each expert, gates first,
    down [dim, width].
    """
    if not len(x):
        return torch.empty_like(x)
    if x.device.type == "cpu":
        return in_segments(x, chosen, weights, gate_up, down, activation)
    if isinstance(gate_up, Tensor) and isinstance(down, Tensor):
        dim, width = down.shape[1:]
        if has_grouped_products(dim, width, x.dtype, x.device):
            return in_groups(x, chosen, weights, gate_up, down, activation)
    return by_definition(x, chosen, weights, gate_up, down, activation)


def by_definition(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Stacked, down: Stacked, activation: Activation = "silu"
) -> Tensor:
    """All rows through all experts, and nothing of those that were not chosen; the slow twin, on any device."""
    out = torch.zeros_like(x)
    for expert in range(len(gate_up)):
        share = (weights * (chosen == expert)).sum(dim=-1, keepdim=True)  # [rows, 1]
        hidden = gated(linear(x, gate_up[expert]), activation) * share.to(x.dtype)
        out += linear(torch.where(share != 0, hidden, 0.0), down[expert])
    return out


def in_segments(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Stacked, down: Stacked, activation: Activation = "silu"
) -> Tensor:
    """A product for each expert that has rows, of as many rows as `linear` would pad them to."""
    per_row, experts = chosen.shape[1], chosen.flatten().numpy()
    order = np.argsort(experts, kind="stable")
    counts = np.bincount(experts, minlength=len(gate_up))
    padded = np.array([rounded_rows(count) if count else 0 for count in counts.tolist()])
    starts = np.cumsum(padded) - padded
    sorted_places = np.arange(len(experts)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    total = int(padded.sum())
    source, places = np.zeros(total, np.int64), np.empty(len(experts), np.int64)
    source[sorted_places], places[order] = order // per_row, sorted_places
    where = torch.from_numpy(places)
    rows = x.index_select(0, torch.from_numpy(source))  # padding is row 0, and nobody's
    out = x.new_empty(total, x.shape[1])
    shares = x.new_zeros(total, 1)
    shares[where, 0] = weights.flatten().to(x.dtype)
    for expert in np.flatnonzero(counts).tolist():
        segment = slice(starts[expert], starts[expert] + padded[expert])
        hidden = gated(linear(rows[segment], gate_up[expert]), activation) * shares[segment]
        out[segment] = linear(hidden, down[expert])
    return _sums(out, where, per_row)


def in_groups(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, activation: Activation = "silu"
) -> Tensor:
    """Two grouped products, whatever the number of experts. The host does not wait."""
    per_row = chosen.shape[1]
    experts, order = chosen.flatten().sort(stable=True)
    numbers = torch.arange(len(gate_up), device=x.device)
    ends = torch.searchsorted(experts, numbers, right=True).int()
    hidden = gated(F.grouped_mm(x[order // per_row], gate_up.mT, offs=ends), activation)
    hidden = hidden * weights.flatten()[order].unsqueeze(-1).to(x.dtype)
    out = F.grouped_mm(hidden, down.mT, offs=ends)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    return _sums(out, places, per_row)


def _sums(rows: Tensor, places: Tensor, per_row: int) -> Tensor:
    """rows [any, dim] -> the sums of those at each `per_row` of `places`, in this order."""
    return F.embedding_bag(places.view(-1, per_row), rows, mode="sum")


def has_grouped_products(dim: int, width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `in_groups` serves rows of `dim` numbers and experts of `width` on this CUDA device.

    Grouped products take bfloat16 whose rows begin at multiples of 16 bytes.
    """
    return (
        hasattr(F, "grouped_mm")  # older versions of torch have none
        and dtype == torch.bfloat16
        and dim % 8 == width % 8 == 0
        and torch.cuda.get_device_capability(device)[0] >= _GROUPED_ARCHITECTURE
    )
