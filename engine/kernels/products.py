"""What a layer computes of dense tensors, by the fastest implementation on the tensors' device.

Knows shapes, dtypes, devices and the best memory order of weights, but no layers, pages or sequences. For float32 on a
CPU, torch's own products use MKL, which does not use AVX-512 on CPUs that are not Intel's. oneDNN, which torch includes
and its compiler uses, does, and is 1.5 to 2 times as fast there; it has no gradient. Attention, rotation,
gates and writes of keys and values on a CPU use this project's own kernels (`engine.kernels.native`) where these are
available: they go through memory once, where torch does so two to five times.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels import native
from engine.kernels.kv import cuda, formats
from engine.kernels.kv.formats import Quantised, Stored

Activation = Literal["silu", "gelu_tanh"]
"""What the gates of an MLP go through; GELU in the form with tanh."""

_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)

ROWS_APART = ROWS_PER_OCTAVE = 8
"""Row counts that products are padded to: the least distance of two counts, and how many there are in an octave."""

PACKED_FOR_ROWS = 32
"""Rows that packed weights are ordered for: a block of most models. Measured to suit 4 rows and 1,920 as well."""

CODES_AT_ONCE = 2**19
"""Codes of a weight that a CPU turns into numbers at once: 2 MiB of float32 stay in its caches until they multiply."""

WEIGHTS_AT_ONCE = 2**19
"""Attention weights that a CPU computes at once: 2 MiB stay in its caches from one product to the next."""

FEW_WEIGHTS = 2**15
"""Attention weights for each KV head below which one call of SDPA is faster than three calls a head."""

WATCHED_WEIGHTS, WATCHED_WEIGHTS_ON_CPU = 2**25, 2**21
"""Attention weights that `watched_attention` computes at once where heads share a product, unless one group has more.
Many on CUDA, where launches are expensive; few on a CPU, whose caches are small."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] weight [out, in] -> [rows, out]."""
    if not _has_onednn(x):
        return F.linear(x, weight, bias)
    missing = rounded_rows(len(x)) - len(x)
    return _product(F.pad(x, (0, 0, 0, missing)), weight, bias)[: len(x)] if missing else _product(x, weight, bias)


def coded_linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` by a weight whose row i is `codes[i] * scales[i]`, int8 [out, in] and [out, 1], on a CPU.

    Makes numbers of as many rows at a time as stay in its caches: with large weights a third of the time that all at
    once take, and less memory.
    """
    at_once = max(CODES_AT_ONCE // codes.shape[1], 1)
    parts = [linear(x, part.to(x.dtype)) for part in torch.split(codes, at_once)]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    out = out * scales.to(x.dtype).flatten()
    return out if bias is None else out + bias


def rounded_rows(rows: int) -> int:
    """Rounds up to one of few row counts: multiples of 8, and 8 counts in any octave.

    oneDNN compiles code for each row count that it meets, in milliseconds, and caches a thousand of these programs.
    """
    step = max(ROWS_APART, 1 << max((rows // ROWS_PER_OCTAVE).bit_length() - 1, 0))
    return -(-rows // step) * step


def packed(weight: Tensor) -> Tensor:
    """The weight [out, in], on a CPU in oneDNN's own memory order: then only `linear` can read it.

    Otherwise oneDNN reorders it at each call, which is too expensive for few rows.
    """
    if weight.is_mkldnn or not _is_onednns(weight):
        return weight
    reordered: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(weight.detach(), PACKED_FOR_ROWS)  # noqa: SLF001
    return reordered


def gated(gate_up: Tensor, activation: Activation = "silu") -> Tensor:
    """gate_up [rows, 2 * width], gates first -> activation(gate) * up [rows, width]."""
    if activation == "silu" and native.takes_rows(gate_up) and (own := native.kernel()):
        return own.gate(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split RoPE in float32: x [rows, heads, head_dim], cos and sin [rows, 1, half].

    The first 2 * half numbers of each head are rotated, the others stay.
    """
    if native.takes_rows(x) and (own := native.kernel()):
        return own.rotate(x, cos, sin)
    half = cos.shape[-1]
    low, high, rest = torch.split(x.float(), [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=-1).to(x.dtype)


def write(kept: Stored, new: Tensor, slots: slice | Tensor, prune: float = 0.0) -> None:
    """Rows of new [rows, heads, head_dim] become those slots of kept [heads, slots, head_dim], in its format.

    `slots` are int64 [rows], or a slice where they are neighbours. `prune` is for codes (`formats.quantised`).
    """
    if native.writes(kept, new) and (own := native.kernel()):
        own.write(kept, new, slots, prune)
    elif isinstance(kept, Quantised) and new.device.type == "cuda" and (by_triton := cuda.triton()):
        by_triton(kept, new, slots, prune)
    else:
        formats.write(kept, new, slots, prune)


def attention(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v: every row sees every key, or those that bool `seen` [rows, visible] says.

    q [rows, heads, head_dim], keys and values [kv_heads, visible, head_dim], each head's contiguous -> as q.
    """
    if seen is None and native.takes(q, keys, values) and (own := native.kernel()):
        return own.attend_all(q, keys, values)
    if seen is None and _is_many(q, keys):
        parts = [_head_by_head(part, keys, values) for part in torch.split(q, _rows_at_once(q, keys))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    attended = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        keys.unsqueeze(0),
        values.unsqueeze(0),
        attn_mask=seen,
        enable_gqa=q.shape[1] != len(keys),
    )  # [1, heads, rows, head_dim]
    return attended.squeeze(0).transpose(0, 1)


def watched_attention(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """`attention`, and its weights: their mean over heads, float32 [rows, visible].

    Computes part of the weights at a time, so that memory does not grow with the number of heads.
    """
    if native.takes(q, keys, values) and (own := native.kernel()):
        return own.watch(q, keys, values)
    mean = torch.zeros(len(q), keys.shape[1], device=q.device)
    if _is_many(q, keys):
        at_once = _rows_at_once(q, keys)
        parts = zip(torch.split(q, at_once), torch.split(mean, at_once), strict=True)
        return torch.cat([_head_by_head(part, keys, values, its_mean) for part, its_mean in parts]), mean
    heads, queries = q.shape[1], _by_kv_head(q, len(keys))
    out = torch.empty_like(queries)
    share = torch.full((heads,), 1 / heads, device=q.device)
    most = WATCHED_WEIGHTS_ON_CPU if q.device.type == "cpu" else WATCHED_WEIGHTS
    at_once = max(most // (queries.shape[1] * keys.shape[1]), 1)
    for first in range(0, len(keys), at_once):
        part = slice(first, first + at_once)
        weights = (queries[part] @ keys[part].mT).softmax(dim=-1, dtype=torch.float32)
        out[part] = weights.to(values.dtype) @ values[part]
        by_head = weights.view(-1, mean.numel())
        mean.view(-1).addmv_(by_head.T, share[: len(by_head)])
    return _by_row(out, len(q)), mean


def _head_by_head(q: Tensor, keys: Tensor, values: Tensor, mean: Tensor | None = None) -> Tensor:
    """`attention` by three calls for each KV head; adds to `mean`.

    Few calls on purpose: with few rows, the fixed cost of a call is most of its time.
    """
    heads, group = q.shape[1], q.shape[1] // len(keys)
    attended = []
    for queries, k, v in zip(_by_kv_head(q, len(keys)), keys, values.mT, strict=True):
        weights = _product(queries, k)
        torch.softmax(weights, dim=-1, out=weights)
        attended.append(_product(weights, v))
        if mean is not None:
            for one in weights.view(group, *mean.shape):
                mean.add_(one, alpha=1 / heads)
    return _by_row(torch.stack(attended), len(q))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` by oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")  # noqa: SLF001 - no public name
    return product


def _by_kv_head(q: Tensor, kv_heads: int) -> Tensor:
    """[rows, heads, head_dim] -> scaled [kv_heads, group * rows, head_dim], contiguous: a group shares its keys."""
    rows, heads, head_dim = q.shape
    scaled: Tensor = q * head_dim**-0.5
    return scaled.view(rows, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3).reshape(kv_heads, -1, head_dim)


def _by_row(out: Tensor, rows: int) -> Tensor:
    """[kv_heads, group * rows, head_dim] -> [rows, heads, head_dim]."""
    return out.view(-1, rows, out.shape[-1]).transpose(0, 1)


def _has_onednn(x: Tensor) -> bool:
    return _is_onednns(x) and not torch.is_grad_enabled()


def _is_onednns(x: Tensor) -> bool:
    return _HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def _is_many(q: Tensor, keys: Tensor) -> bool:
    return _has_onednn(q) and len(q) * _weights_of_a_row(q, keys) >= FEW_WEIGHTS


def _rows_at_once(q: Tensor, keys: Tensor) -> int:
    return max(WEIGHTS_AT_ONCE // _weights_of_a_row(q, keys), 1)


def _weights_of_a_row(q: Tensor, keys: Tensor) -> int:
    """Attention weights of one row, for each KV head."""
    return q.shape[1] // len(keys) * keys.shape[1]
