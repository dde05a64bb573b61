"""Attention over a paged KV pool on CUDA: one launch for a whole batch, which reads each page where it lies.

The kernel has the contract of `attention.attend_rows`, but takes int32 tensors in place of segments. The host decides
nothing but shapes: a CUDA graph can capture the launch, and a replay reads whatever the tensors then hold. Codes of
keys and values become numbers in registers. Knows pages and horizons, but no layers and no requests. Imports Triton,
which not every machine has (`triton_available`). Sources: FlashAttention-2 (arXiv 2307.08691), PagedAttention
(2309.06180).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.attention import TILE_ROWS, Layout
from engine.kernels.kv.formats import Quantised, Stored

_MOST_KEYS, _KEYS_BYTES = 64, 2**14
"""Bounds of the keys that a program reads at once: with their values and a second set of both, they have to fit in
shared memory, and the products in registers. Chosen from what the compiler reports for them, not measured."""

_LEAST_SIDE = 16
"""Least side of a matrix that Triton multiplies."""


def attend_pages(q: Tensor, keys: Stored, values: Stored, layout: Layout) -> Tensor:
    """An `attention.Kernel`: `attend_paged` over the layout's page tables, which must be on the device."""
    assert layout.paged is not None, "page tables that were not uploaded"
    tiles, horizons, table, page_size = layout.paged
    return attend_paged(q, keys, values, tiles, horizons, table, page_size)


def attend_paged(
    q: Tensor, keys: Stored, values: Stored, tiles: Tensor, horizons: Tensor, table: Tensor, page_size: int
) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v over the first `horizons[row]` positions of each row's sequence.

    q [rows, heads, head_dim], keys and values [kv_heads, slots, head_dim] in one format, the slots of a head contiguous
    -> as q. tiles int32 [tiles, 3] as in `attention.PagedRows`; a tile without rows does nothing. horizons int32
    [rows]. table int32 [sequences, width] has the pages of each sequence in the order of its positions. Slots behind
    the largest horizon of a tile are not read: they may hold NaN. Rows with a horizon of 0 become zeros; rows outside
    all tiles are undefined.
    """
    out = torch.empty_like(q)
    (keys, key_scales), (values, value_scales) = _tensors(keys), _tensors(values)
    head_dim, group = q.shape[2], q.shape[1] // len(keys)
    padded_dim = triton.next_power_of_2(max(head_dim, _LEAST_SIDE))
    # Codes are multiplied as numbers of q's type.
    keys_at_once = max(min(_MOST_KEYS, _KEYS_BYTES // (padded_dim * q.element_size())), _LEAST_SIDE)
    # A group's heads share their keys. The parts of a tile run side by side, so that all but one find them in a cache.
    _attend[(group, len(tiles), len(keys))](
        q,
        keys,
        values,
        key_scales,
        value_scales,
        out,
        tiles,
        horizons,
        table,
        head_dim**-0.5,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        keys.stride(0),
        values.stride(0),
        key_scales.stride(0),
        table.stride(0),
        page_size=page_size,
        group=group,
        head_dim=head_dim,
        padded_dim=padded_dim,
        pairs=TILE_ROWS,
        keys_at_once=keys_at_once,
        precision="ieee" if q.dtype == torch.float32 else "tf32",  # the latter means nothing to smaller types
        num_warps=4 if keys_at_once == _MOST_KEYS else 8,
        num_stages=2,
    )
    return out


def _tensors(stored: Stored) -> tuple[Tensor, Tensor]:
    """Numbers, or the bytes of codes, and scales; numbers stand in for those that they do not have.

    e4m3 is read as its bits: not every GPU has instructions for it.
    """
    if isinstance(stored, Quantised):
        return stored.codes.view(torch.int8 if stored.codes.dtype == torch.int8 else torch.uint8), stored.scales
    return stored, stored


# The width of a step's table changes from step to step, and nothing may be compiled for it while somebody waits.
@triton.jit(do_not_specialize=["table_row"])
def _attend(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    out: tl.tensor,
    tiles: tl.tensor,
    horizons: tl.tensor,
    table: tl.tensor,
    scale: tl.tensor,
    q_row: tl.tensor,
    q_head: tl.tensor,
    out_row: tl.tensor,
    out_head: tl.tensor,
    keys_head: tl.tensor,
    values_head: tl.tensor,
    scales_head: tl.tensor,
    table_row: tl.tensor,
    page_size: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    pairs: tl.constexpr,
    keys_at_once: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    """One of `group` parts of a tile, for one KV head: `pairs` of a row and a head of the group, row by row.

    The softmax is a running one, in float32.
    """
    part, tile, kv_head = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first = tl.load(tiles + tile * 3).to(tl.int64)
    count = tl.load(tiles + tile * 3 + 1)
    sequence = tl.load(tiles + tile * 3 + 2).to(tl.int64)

    pair = part * pairs + tl.arange(0, pairs)
    row, head = first + pair // group, kv_head * group + pair % group
    exists = pair // group < count
    horizon = tl.load(horizons + row, mask=exists, other=0)
    end = tl.max(horizon, 0)

    dim = tl.arange(0, padded_dim)
    is_dim = dim < head_dim
    q_at = q + row[:, None] * q_row + head[:, None] * q_head + dim[None, :]
    queries = tl.load(q_at, mask=exists[:, None] & is_dim[None, :], other=0.0)
    keys += kv_head * keys_head
    values += kv_head * values_head
    key_scales += kv_head * scales_head
    value_scales += kv_head * scales_head
    is_coded: tl.constexpr = keys.dtype.element_ty.primitive_bitwidth == 8
    table += sequence * table_row

    to_log2 = scale * 1.4426950408889634  # powers of 2 are what the hardware computes
    best = tl.full((pairs,), float("-inf"), tl.float32)
    total = tl.zeros((pairs,), tl.float32)
    attended = tl.zeros((pairs, padded_dim), tl.float32)
    for start in range(0, end, keys_at_once):
        position = start + tl.arange(0, keys_at_once)
        is_key = position < end
        page = tl.load(table + position // page_size, mask=is_key, other=0).to(tl.int64)
        slot = page * page_size + position % page_size
        at = slot[:, None] * head_dim + dim[None, :]
        is_read = is_key[:, None] & is_dim[None, :]
        k = tl.load(keys + at, mask=is_read, other=0)
        v = tl.load(values + at, mask=is_read, other=0)
        if is_coded:
            k = _numbers(k).to(queries.dtype)  # without rounding
            v = _numbers(v) * tl.load(value_scales + slot, mask=is_key, other=0.0)[:, None]
            v = v.to(queries.dtype)

        is_seen = position[None, :] < horizon[:, None]
        scores = tl.dot(queries, tl.trans(k), input_precision=precision) * to_log2
        if is_coded:
            scores *= tl.load(key_scales + slot, mask=is_key, other=0.0)[None, :]
        scores = tl.where(is_seen, scores, float("-inf"))
        peak = tl.maximum(best, tl.max(scores, 1))
        shift = tl.where(peak == float("-inf"), 0.0, peak)  # a row that sees nothing: -inf minus -inf is NaN
        shrink = tl.exp2(best - shift)
        weights = tl.exp2(scores - shift[:, None])
        attended = attended * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=precision)
        total = total * shrink + tl.sum(weights, 1)
        best = peak

    attended /= tl.where(horizon > 0, total, 1.0)[:, None]
    out_at = out + row[:, None] * out_row + head[:, None] * out_head + dim[None, :]
    tl.store(out_at, attended.to(out.dtype.element_ty), mask=exists[:, None] & is_dim[None, :])


@triton.jit
def _numbers(codes: tl.tensor) -> tl.tensor:
    """Codes of int8, or the bits of e4m3 as uint8, as float32 without their scales."""
    if codes.dtype == tl.int8:
        return codes.to(tl.float32)
    bits = codes.to(tl.int32)
    magnitude = bits & 0x7F
    normal = ((magnitude << 20) + (120 << 23)).to(tl.float32, bitcast=True)  # 120: what the exponents differ by
    number = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, normal)
    return tl.where(bits < 128, number, -number)
