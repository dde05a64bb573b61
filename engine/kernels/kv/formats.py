"""Number formats of keys and values: as computed, or as codes of 8 bits with a scale for each row of a head.

The definition of quantisation: kernels that write or read codes are tested against it. A row of a head, `head_dim`
numbers, is coded by itself, so that its codes depend on nothing but itself: not on the order of writes, not on other
tokens, not on the batch. docs/adr/037 has the reasons, and what comes from Titanus (arXiv 2505.17787).
"""

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""dtype of codes -> the code that the largest number of a row gets."""

_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""`EngineConfig.kv_dtype` -> dtype of codes."""


class Quantised(NamedTuple):
    """Rows of codes: row i stands for `codes[i] * scales[i]`."""

    codes: Tensor
    """[..., head_dim] int8 or float8_e4m3fn."""
    scales: Tensor
    """[...] float32, at least 0. NaN for rows that had a number which is not finite."""


Stored = Tensor | Quantised
"""Keys or values of one layer, [kv_heads, slots, head_dim], in any format."""


def stored_dtype(kv_dtype: str, dtype: torch.dtype) -> torch.dtype:
    """What `EngineConfig.kv_dtype` stores where the model computes in `dtype`: that itself (`auto`), or codes."""
    return _DTYPES.get(kv_dtype, dtype)


def is_quantised(dtype: torch.dtype) -> bool:
    """Whether a pool of this dtype stores codes with scales."""
    return dtype in LARGEST


def row_bytes(head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of the key, or of the value, of one position in one head, with its scale if it has one."""
    return head_dim * dtype.itemsize + (torch.float32.itemsize if is_quantised(dtype) else 0)


def quantised(rows: Tensor, dtype: torch.dtype, prune: float = 0.0) -> Quantised:
    """rows [..., head_dim] as codes of this dtype: the largest magnitude of a row gets the largest code.

    Symmetric, rounded to the nearest code, halves to the even one. A row of zeros, or of numbers so small that their
    scale underflows, has the scale 0. A row with a number that is not finite becomes NaN as a whole.

    Numbers below `prune` (0 to 1) times their row's largest magnitude become 0 first. So far in Titanus's order, prune
    and then quantise; its own thresholds, searched off line for each model, are not public.
    """
    rows, largest = rows.float(), LARGEST[dtype]
    peaks = rows.abs().amax(dim=-1)
    is_finite = peaks.isfinite()
    # By a tensor: on CUDA torch multiplies with the reciprocal of a number, which gives other bits.
    scales = torch.where(is_finite, peaks / torch.full_like(peaks, largest), torch.nan)
    has_codes = is_finite & (scales > 0)
    divisors = torch.where(has_codes, scales, 1.0).unsqueeze(-1)
    is_coded = has_codes.unsqueeze(-1) & (rows.abs() >= (peaks * prune).unsqueeze(-1))
    scaled = torch.where(is_coded, rows / divisors, 0.0).clamp(-largest, largest)
    return Quantised((scaled.round() if dtype == torch.int8 else scaled).to(dtype), scales)


def as_stored(rows: Tensor, dtype: torch.dtype) -> Stored:
    """rows [..., head_dim] as a pool of this dtype stores them; only codes are made, other dtypes are not converted."""
    return quantised(rows, dtype) if is_quantised(dtype) else rows


def read(stored: Stored, slots: slice | Tensor, dtype: torch.dtype) -> Tensor:
    """These slots of stored [kv_heads, slots, head_dim] as numbers [kv_heads, some, head_dim].

    `slots` are int64, or a slice. Numbers that were stored as they are keep their dtype; those of codes are computed in
    float32 and rounded to `dtype`.
    """
    if isinstance(stored, Tensor):
        return stored[:, slots]
    # By their bytes: not every device indexes float8.
    codes = stored.codes.view(torch.int8)[:, slots].view(stored.codes.dtype)
    return (codes.float() * stored.scales[:, slots].unsqueeze(-1)).to(dtype)


def write(stored: Stored, rows: Tensor, slots: slice | Tensor, prune: float = 0.0) -> None:
    """Rows of rows [some, kv_heads, head_dim] become these slots of stored [kv_heads, slots, head_dim].

    Rows have the dtype of numbers that are stored as they are, and any where codes are; `prune` is for codes.
    """
    if isinstance(stored, Tensor):
        _put(stored, rows.transpose(0, 1), slots)
        return
    codes, scales = quantised(rows, stored.codes.dtype, prune)
    _put(stored.codes.view(torch.int8), codes.view(torch.int8).transpose(0, 1), slots)
    _put(stored.scales, scales.T, slots)


def _put(kept: Tensor, new: Tensor, slots: slice | Tensor) -> None:
    if isinstance(slots, slice):
        kept[:, slots] = new
    else:
        kept.index_copy_(1, slots, new)
