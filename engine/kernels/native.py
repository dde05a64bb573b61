"""Attention on a CPU by this project's own kernel, `native.cpp`, compiled for the processor that runs it.

Knows the kernel's arguments; `library` finds or compiles it. docs/adr/012 gives its reasons. Without it only speed is
lost: `products` then uses torch's kernels.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.library import checked


class SpanAddress(NamedTuple):
    """Rows [start, stop) of one sequence and where its keys are; the struct of the same name of `native.cpp`."""

    start: int
    stop: int
    first: int = 0
    """Slot of the first key; the others follow it if `slots` is 0."""
    slots: int = 0
    """Otherwise the address of an int64 array with the slots of all keys, as many as the largest horizon."""


MAX_HEAD_DIM = 256
TILE, MOST_QUERIES = 64, 32
"""Constants of `native.cpp`: keys between two checks of the largest score, most queries that are computed at once."""

Ids = NDArray[np.int64]
_Pointer, _Integer = ctypes.c_void_p, ctypes.c_int64


class Kernel:
    """The functions of a shared library. Raises OSError if that cannot be loaded."""

    def __init__(self, path: Path) -> None:
        functions = ctypes.CDLL(str(path))
        self._attention, self._watched_attention = functions.attention, functions.watched_attention
        tensors = (*(_Pointer, _Integer) * 2, _Pointer, _Pointer, _Integer, _Integer, _Integer, _Integer)
        self._attention.argtypes = (*tensors, _Pointer, _Integer, _Pointer, ctypes.c_int)
        self._watched_attention.argtypes = (*tensors, _Integer, _Integer, _Pointer, _Pointer, ctypes.c_int)
        self._attention.restype = self._watched_attention.restype = None

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, spans: Ids, horizons: Ids) -> Tensor:
        """q [rows, heads, head_dim], keys and values [kv_heads, slots, head_dim] -> as q.

        `spans` int64 [spans, 4] are `Span`s. Row i sees the first `horizons[i]` keys of its span, at least one. Rows
        outside all spans are undefined.
        """
        out = q.new_empty(q.shape)
        tensors = _tensors(out, q, keys, values)
        tables = spans.ctypes.data, len(spans), horizons.ctypes.data
        self._attention(*tensors, *tables, torch.get_num_threads())
        return out

    def attend_all(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`attend` where all rows see all keys."""
        rows, visible = len(q), keys.shape[1]
        return self.attend(
            q, keys, values, np.array([SpanAddress(0, rows)], np.int64), np.full(rows, visible, np.int64)
        )

    def watch(self, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All rows see all keys -> attended rows, shaped as q, and the weights' mean over heads [rows, slots]."""
        rows, visible, threads = len(q), keys.shape[1], torch.get_num_threads()
        out, mean = q.new_empty(q.shape), q.new_empty(rows, visible)
        room = q.new_empty(threads, 2 * visible + visible // TILE + 1, MOST_QUERIES)
        tensors = _tensors(out, q, keys, values)
        self._watched_attention(*tensors, rows, visible, mean.data_ptr(), room.data_ptr(), threads)
        return out, mean


def _tensors(out: Tensor, q: Tensor, keys: Tensor, values: Tensor) -> tuple[int, ...]:
    """The leading arguments of both functions."""
    heads, head_dim = q.shape[1:]
    pointers = (out.data_ptr(), out.stride(0), q.data_ptr(), q.stride(0), keys.data_ptr(), values.data_ptr())
    return *pointers, keys.stride(0), len(keys), heads // len(keys), head_dim


@cache
def kernel() -> Kernel | None:
    """The kernel, or None if it is not available; the log has the reason."""
    return checked("attention", Kernel, _agrees)


def takes(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the kernel supports these tensors: float32 on a CPU, each head's numbers contiguous, and no gradient."""
    head_dim = q.shape[-1]
    return (
        q.device.type == "cpu"
        and q.dtype == torch.float32
        and not torch.is_grad_enabled()
        and head_dim % 8 == 0
        and head_dim <= MAX_HEAD_DIM
        and q.stride()[1:] == (head_dim, 1)
        and keys.stride()[1:] == (head_dim, 1)
        and values.stride() == keys.stride()
    )


@torch.no_grad()
def _agrees(own: Kernel) -> bool:
    """Whether it matches SDPA and weights sum to 1. Every loop of the kernel has a remainder at these shapes."""
    rows, heads, kv_heads, visible, head_dim = 37, 4, 2, 139, 16
    q, keys, values = (
        torch.arange(count * head_dim, dtype=torch.float32).mul_(step).sin_().mul_(3.0)
        for count, step in ((rows * heads, 0.7), (kv_heads * visible, 1.1), (kv_heads * visible, 1.3))
    )
    q, keys, values = q.view(rows, heads, -1), keys.view(kv_heads, visible, -1), values.view(kv_heads, visible, -1)
    expected = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), enable_gqa=True
    )
    expected = expected.squeeze(0).transpose(0, 1)
    out, (watched, mean) = own.attend_all(q, keys, values), own.watch(q, keys, values)
    pairs = (out, expected), (watched, expected), (mean.sum(dim=-1), mean.new_ones(rows))
    return all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in pairs)
