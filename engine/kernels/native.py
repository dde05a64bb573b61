"""Attention, rotation, gates and writes of keys and values on a CPU by this project's own kernels.

`native.cpp` and `rows.cpp` are compiled for the processor that runs them. Knows the kernels' arguments; `library` finds
or compiles them. docs/adr/012 gives their reasons. Without them only speed is lost: `products` then uses torch's.
"""

import ctypes
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.kv.formats import LARGEST, Quantised, Stored, quantised, read, write
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
        attention = (*tensors, _Pointer, _Integer, _Pointer, ctypes.c_int)
        self._attention.argtypes = attention
        self._coded_attention = functions.coded_attention
        self._coded_attention.argtypes = (*attention, _Pointer, _Pointer, _Integer, ctypes.c_int)
        self._watched_attention.argtypes = (*tensors, _Integer, _Integer, _Pointer, _Pointer, ctypes.c_int)
        self._gated, self._rotated, self._written = functions.gated, functions.rotated, functions.written
        rows = (_Pointer, _Integer)
        self._gated.argtypes = (_Pointer, *rows, _Integer, _Integer, ctypes.c_int)
        self._rotated.argtypes = (_Pointer, *rows, _Pointer, _Pointer, *(_Integer,) * 4, ctypes.c_int)
        self._written.argtypes = (*rows, *rows, _Pointer, *(_Integer,) * 4, ctypes.c_int)
        self._written_as_codes = functions.written_as_codes
        self._written_as_codes.argtypes = (*rows, *self._written.argtypes, ctypes.c_int, ctypes.c_float)
        attentions = self._attention, self._coded_attention, self._watched_attention
        for function in (*attentions, self._gated, self._rotated, self._written, self._written_as_codes):
            function.restype = None

    def attend(self, q: Tensor, keys: Stored, values: Stored, spans: Ids, horizons: Ids) -> Tensor:
        """q [rows, heads, head_dim], keys and values [kv_heads, slots, head_dim] in one format -> as q.

        `spans` int64 [spans, 4] are `SpanAddress`es. Row i sees the first `horizons[i]` keys of its span, at least one.
        Rows outside all spans are undefined.
        """
        out = q.new_empty(q.shape)
        tables = spans.ctypes.data, len(spans), horizons.ctypes.data, torch.get_num_threads()
        if isinstance(keys, Tensor) and isinstance(values, Tensor):
            self._attention(*_tensors(out, q, keys, values), *tables)
        elif isinstance(keys, Quantised) and isinstance(values, Quantised):
            scales = keys.scales.data_ptr(), values.scales.data_ptr(), keys.scales.stride(0)
            tensors = _tensors(out, q, keys.codes, values.codes)
            self._coded_attention(*tensors, *tables, *scales, keys.codes.dtype == torch.int8)
        return out

    def attend_all(self, q: Tensor, keys: Stored, values: Stored) -> Tensor:
        """`attend` where all rows see all keys."""
        rows, visible = len(q), (keys if isinstance(keys, Tensor) else keys.codes).shape[1]
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

    def gate(self, gate_up: Tensor) -> Tensor:
        """gate_up [rows, 2 * width], gates first -> silu(gate) * up [rows, width]."""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        self._gated(out.data_ptr(), *_rows(gate_up), rows, width, torch.get_num_threads())
        return out

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [rows, heads, head_dim], cos and sin [rows, 1, half] -> as x, by half-split RoPE; torch's bits.

        Rotates the first 2 * half numbers of each head.
        """
        out = x.new_empty(x.shape)
        rows, heads, head_dim = x.shape
        tables = cos.data_ptr(), sin.data_ptr()
        self._rotated(out.data_ptr(), *_rows(x), *tables, rows, heads, head_dim, cos.shape[-1], torch.get_num_threads())
        return out

    def write(self, kept: Stored, new: Tensor, slots: slice | Tensor, prune: float = 0.0) -> None:
        """Rows of new [rows, heads, head_dim] become those slots of kept [heads, slots, head_dim], in its format.

        `slots` are contiguous int64 [rows], or a slice without a step; all of them are slots of `kept`, which the
        kernel does not check. `prune` is for codes (`formats.quantised`).
        """
        assert isinstance(slots, slice) or (slots.is_contiguous() and slots.dtype == torch.int64)
        where = (None, slots.start) if isinstance(slots, slice) else (slots.data_ptr(), 0)
        arguments = *_rows(new), *where, *new.shape, torch.get_num_threads()
        if isinstance(kept, Tensor):
            self._written(*_rows(kept), *arguments)
        else:
            kept_rows, is_int8 = (*_rows(kept.codes), *_rows(kept.scales)), kept.codes.dtype == torch.int8
            self._written_as_codes(*kept_rows, *arguments, is_int8, prune)


def _tensors(out: Tensor, q: Tensor, keys: Tensor, values: Tensor) -> tuple[int, ...]:
    """The leading arguments of both attentions."""
    heads, head_dim = q.shape[1:]
    pointers = (out.data_ptr(), out.stride(0), q.data_ptr(), q.stride(0), keys.data_ptr(), values.data_ptr())
    return *pointers, keys.stride(0), len(keys), heads // len(keys), head_dim


def _rows(rows: Tensor) -> tuple[int, int]:
    return rows.data_ptr(), rows.stride(0)


@cache
def kernel() -> Kernel | None:
    """The kernels, or None if they are not available; the log has the reason."""
    return checked("attention", Kernel, _agrees)


def takes(q: Tensor, keys: Stored, values: Stored) -> bool:
    """Whether attention supports these tensors: queries in float32 on a CPU, each head's numbers contiguous, and no
    gradient."""
    head_dim = q.shape[-1]
    if isinstance(keys, Quantised) and isinstance(values, Quantised):
        if keys.scales.stride(1) != 1 or keys.scales.stride() != values.scales.stride():
            return False
        keys, values = keys.codes, values.codes
    elif not (isinstance(keys, Tensor) and isinstance(values, Tensor)) or keys.dtype != q.dtype:
        return False
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


def takes_rows(rows: Tensor) -> bool:
    """Whether the others take rows [rows, width] or [rows, heads, head_dim].

    They take float32 on a CPU, each row contiguous, without a gradient, and nothing that torch's compiler looks at.
    """
    return (
        not torch.compiler.is_compiling()
        and rows.device.type == "cpu"
        and rows.dtype == torch.float32
        and not torch.is_grad_enabled()
        and rows.stride()[1:] in ((1,), (rows.shape[-1], 1))
    )


def writes(kept: Stored, new: Tensor) -> bool:
    """Whether `Kernel.write` takes these tensors."""
    if isinstance(kept, Quantised):
        head_dim = new.shape[-1]
        return takes_rows(new) and head_dim % 8 == 0 and kept.codes.stride()[1:] == (head_dim, 1)
    return takes_rows(new) and takes_rows(kept)


@torch.no_grad()
def _agrees(own: Kernel) -> bool:
    return _attends(own) and _works_row_by_row(own)


def _attends(own: Kernel) -> bool:
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
    pairs = [(out, expected), (watched, expected), (mean.sum(dim=-1), mean.new_ones(rows))]
    for dtype in LARGEST:
        codes = [quantised(numbers, dtype) for numbers in (keys, values)]
        numbers = [read(stored, slice(None), torch.float32) for stored in codes]
        pairs.append((own.attend_all(q, codes[0], codes[1]), own.attend_all(q, numbers[0], numbers[1])))
    return all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in pairs)


def _works_row_by_row(own: Kernel) -> bool:
    """Whether gates, rotation and writes are what torch computes. Every loop has a remainder at these shapes."""
    count, heads, head_dim = 21, 3, 74
    width = heads * head_dim
    x = torch.arange(count * 2 * width, dtype=torch.float32).mul_(0.7).sin_().mul_(9).view(count, 2 * width)
    new, (gate, up) = x[:, :width].view(count, heads, head_dim), x.chunk(2, dim=-1)
    half = head_dim // 2 - 2
    cos, sin = (x[:, None, begin : begin + half].contiguous() for begin in (0, 50))
    low, high, rest = new[..., :half], new[..., half : 2 * half], new[..., 2 * half :]
    slots, kept = torch.arange(count).flip(0), torch.zeros(heads, count + 2, head_dim)
    own.write(kept, new, slots)
    pairs = (
        (own.gate(x), F.silu(gate) * up),
        (own.rotate(new, cos, sin), torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=-1)),
        (kept, torch.zeros_like(kept).index_copy_(1, slots, new.transpose(0, 1))),
    )
    return all(torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5) for ours, theirs in pairs) and _writes_codes(own, x)


def _writes_codes(own: Kernel, x: Tensor) -> bool:
    """Whether codes of x [rows, at least 48] and their scales are those of the definition, bit by bit."""
    new, slots = x[:, :48].view(len(x), 2, 24), torch.arange(len(x)).flip(0)
    for dtype, prune in product(LARGEST, (0.0, 0.3)):
        ours, theirs = (
            Quantised(torch.zeros(2, len(x), 24, dtype=torch.int8).view(dtype), torch.zeros(2, len(x)))
            for _ in range(2)
        )
        own.write(ours, new, slots, prune)
        write(theirs, new, slots, prune)
        if not (torch.equal(ours.codes.view(torch.int8), theirs.codes.view(torch.int8))):
            return False
        if not torch.equal(ours.scales, theirs.scales):
            return False
    return True
