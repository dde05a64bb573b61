"""Codes of keys and values on CUDA: one launch makes them, and their scales, of all rows, and puts them in their slots.

The definition is `formats.write`, whose codes these are bit by bit. Knows slots, but no layers and no requests. Imports
Triton, which not every machine has (`triton_available`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.kv.formats import LARGEST, Quantised


def write(kept: Quantised, rows: Tensor, slots: slice | Tensor, prune: float = 0.0) -> None:
    """As `formats.write`: rows [some, kv_heads, head_dim], each head's numbers contiguous, and int64 slots."""
    heads, head_dim = rows.shape[1:]
    _write[(len(rows), heads)](
        kept.codes.view(torch.int8),
        kept.scales,
        rows,
        kept.scales if isinstance(slots, slice) else slots,
        slots.start if isinstance(slots, slice) else 0,
        kept.codes.stride(0),
        kept.scales.stride(0),
        rows.stride(0),
        rows.stride(1),
        LARGEST[kept.codes.dtype],
        float(prune),
        is_list=isinstance(slots, Tensor),
        is_int8=kept.codes.dtype == torch.int8,
        head_dim=head_dim,
        padded_dim=triton.next_power_of_2(head_dim),
        num_warps=1,
    )


@triton.jit(do_not_specialize=["first"])
def _write(
    codes: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    slots: tl.tensor,
    first: tl.tensor,
    codes_head: tl.tensor,
    scales_head: tl.tensor,
    rows_row: tl.tensor,
    rows_head: tl.tensor,
    largest: tl.tensor,
    prune: tl.tensor,
    is_list: tl.constexpr,
    is_int8: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
) -> None:
    """One head of one row."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + row) if is_list else first + row
    dim = tl.arange(0, padded_dim)
    is_dim = dim < head_dim
    x = tl.load(rows + row * rows_row + head * rows_head + dim, mask=is_dim, other=0.0).to(tl.float32)

    is_finite = tl.abs(x) < float("inf")
    peak = tl.max(tl.where(is_finite, tl.abs(x), 0.0), 0)
    scale = tl.div_rn(peak, largest)
    is_sound = tl.min(is_finite.to(tl.int32), 0) == 1
    has_codes = is_sound & (scale > 0.0)
    x = tl.where(has_codes & (tl.abs(x) >= peak * prune), x, 0.0)
    x = tl.div_rn(x, tl.where(has_codes, scale, 1.0))
    x = tl.minimum(tl.maximum(x, -largest), largest)
    code = _int8(x) if is_int8 else _e4m3(x)
    tl.store(codes + head * codes_head + slot * head_dim + dim, code.to(tl.int8), mask=is_dim)
    tl.store(scales + head * scales_head + slot, tl.where(is_sound, scale, float("nan")))


@triton.jit
def _int8(x: tl.tensor) -> tl.tensor:
    """The nearest whole numbers, halves the even ones: sums with 1.5 * 2^23 have them in their lowest bits."""
    return (x + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def _e4m3(x: tl.tensor) -> tl.tensor:
    """The bits of the nearest e4m3, whose exponents are 120 less and whose least normal number is 2^-6, code 8."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = (magnitude + 0x7FFFF + ((magnitude >> 20) & 1) - (120 << 23)) >> 20
    small = (tl.abs(x) * 512.0 + 12582912.0).to(tl.int32, bitcast=True) & 0xF
    return tl.where(normal < 8, small, normal) | ((bits >> 24) & 0x80)
