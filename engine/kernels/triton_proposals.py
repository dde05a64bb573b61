"""Tokens and log-odds of target logits on CUDA: each logit is read once, and no float32 copy of them is made.

Two launches: the first cuts each row into spans, so that a few targets occupy a whole GPU, and the second merges a
row's spans. The host decides nothing but shapes, so that a CUDA graph can capture both. The definitions are
`_best_token` and `_log_odds` of `engine.scoring.scores` and `draw` of `engine.scoring.sampling`, with the noise of
`engine.core.noise`. Knows the mask token and temperatures, but no requests. Imports Triton, which not every machine has
(`triton_available`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_SPAN = 4096
"""Logits of a row that one program reads; a power of two. Chosen, not measured."""

_WARPS = 8

_NO_TOKEN = tl.constexpr(2**31 - 1)
"""What a span without a candidate proposes: greater than every token, so that a merge prefers any other."""


def best_token(logits: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
    """logits [rows, vocab] -> int64 [rows] and float32 [rows]: the best token that is not the mask, and its log-odds.

    Of equal tokens the lowest is the best. Log-odds are the token's logit minus the log-sum-exp of all others, which
    include the mask's: precise even where the token's probability rounds to 1. They are infinite where the token is the
    only one with a finite logit, and NaN where any logit of the row is; then the token is any but the mask.
    """
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    return tokens, _score(logits, tokens, mask_id, is_given=False)


def log_odds(logits: Tensor, tokens: Tensor) -> Tensor:
    """logits [rows, vocab] and tokens int64 [rows] -> float32 [rows], as `best_token` defines them."""
    return _score(logits, tokens, 0, is_given=True)


def draw(
    logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor, steps: Tensor, mask_id: int | None
) -> Tensor:
    """logits [rows, vocab] -> tokens int64 [rows], drawn from softmax(logits / temperature) without the mask.

    temperature float32 [rows], each above 0. seeds, positions and steps int64 [rows] are hashed into the noise. Where
    a logit of a row is NaN, its token is any but the mask.
    """
    rows, vocab = logits.shape
    spans = triton.cdiv(vocab, _SPAN)
    best = torch.empty(rows, spans, dtype=torch.float32, device=logits.device)
    proposed = torch.empty(rows, spans, dtype=torch.int32, device=logits.device)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    row = logits.stride(0)
    of_rows = (temperature, seeds, positions, steps)
    _draw_in_span[(spans, rows)](
        logits, *of_rows, best, proposed, vocab, row, _id(mask_id), spans, size=_SPAN, num_warps=_WARPS
    )
    _merge_draws[(rows,)](best, proposed, tokens, spans, padded_spans=triton.next_power_of_2(spans), num_warps=1)
    return tokens


def _id(mask_id: int | None) -> int:
    """As the kernels take it: one that no token has, where there is no mask."""
    return -1 if mask_id is None else mask_id


def _score(logits: Tensor, tokens: Tensor, mask_id: int | None, *, is_given: bool) -> Tensor:
    """Log-odds [rows] of `tokens` [rows], which are read if they are given, and written otherwise."""
    rows, vocab = logits.shape
    spans = triton.cdiv(vocab, _SPAN)
    best, peaks, totals = torch.empty(3, rows, spans, dtype=torch.float32, device=logits.device)
    proposed = torch.empty(rows, spans, dtype=torch.int32, device=logits.device)
    scores = torch.empty(rows, dtype=torch.float32, device=logits.device)
    row, partial = logits.stride(0), (best, proposed, peaks, totals)
    _score_span[(spans, rows)](
        logits, tokens, *partial, vocab, row, _id(mask_id), spans, is_given=is_given, size=_SPAN, num_warps=_WARPS
    )
    _merge_scores[(rows,)](
        *partial, tokens, scores, spans, is_given=is_given, padded_spans=triton.next_power_of_2(spans), num_warps=1
    )
    return scores


@triton.jit
def _score_span(
    logits: tl.tensor,
    tokens: tl.tensor,
    best: tl.tensor,
    proposed: tl.tensor,
    peaks: tl.tensor,
    totals: tl.tensor,
    vocab: tl.tensor,
    logits_row: tl.tensor,
    mask_id: tl.tensor,
    spans: tl.tensor,
    is_given: tl.constexpr,
    size: tl.constexpr,
) -> None:
    """Of one span of one row: a token, its logit, and the peak and total of all others as `_weights` has them.

    The token is the given one if it is in the span, else the best. A total of NaN says that there is one in the span.
    """
    span, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    token = span * size + tl.arange(0, size)
    logit = tl.load(logits + row * logits_row + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    has_nan = tl.max((logit != logit).to(tl.int32), 0) > 0
    logit = tl.where(logit != logit, float("-inf"), logit)  # the maximum of NaN and others depends on the device
    is_candidate = token == tl.load(tokens + row) if is_given else (token < vocab) & (token != mask_id)
    top = tl.max(tl.where(is_candidate, logit, float("-inf")), 0)
    chosen = tl.min(tl.where(is_candidate & (logit == top), token, _NO_TOKEN), 0)
    others = tl.where(token == chosen, float("-inf"), logit)
    peak = tl.max(others, 0)
    total = tl.sum(_weights(others, peak), 0)
    at = row * spans + span
    tl.store(best + at, top)
    tl.store(proposed + at, chosen)
    tl.store(peaks + at, peak)
    tl.store(totals + at, tl.where(has_nan, float("nan"), total))


@triton.jit
def _merge_scores(
    best: tl.tensor,
    proposed: tl.tensor,
    peaks: tl.tensor,
    totals: tl.tensor,
    tokens: tl.tensor,
    scores: tl.tensor,
    spans: tl.tensor,
    is_given: tl.constexpr,
    padded_spans: tl.constexpr,
) -> None:
    """The row's token is the best of its spans'; the tokens of the other spans join those that it is compared with."""
    row = tl.program_id(0).to(tl.int64)
    span = tl.arange(0, padded_spans)
    at, exists = row * spans + span, span < spans
    logit = tl.load(best + at, mask=exists, other=float("-inf"))
    token = tl.load(proposed + at, mask=exists, other=_NO_TOKEN)
    top = tl.max(logit, 0)
    chosen = tl.min(tl.where(logit == top, token, _NO_TOKEN), 0)
    losers = tl.where(token == chosen, float("-inf"), logit)
    others = tl.load(peaks + at, mask=exists, other=float("-inf"))
    peak = tl.maximum(tl.max(others, 0), tl.max(losers, 0))
    total = tl.sum(tl.load(totals + at, mask=exists, other=0.0) * _weights(others, peak) + _weights(losers, peak), 0)
    # Nothing beside the token: the peak is -inf, and so is the sum's logarithm.
    tl.store(scores + row, top - (peak + tl.log(tl.where(total == 0.0, 1.0, total))))
    if not is_given:
        tl.store(tokens + row, chosen.to(tl.int64))


@triton.jit
def _weights(logits: tl.tensor, peak: tl.tensor) -> tl.tensor:
    """exp(logits - peak), but not NaN where both are infinite: then 0 below and infinity above."""
    return tl.exp(logits - tl.where(tl.abs(peak) == float("inf"), 0.0, peak))


@triton.jit
def _draw_in_span(
    logits: tl.tensor,
    temperatures: tl.tensor,
    seeds: tl.tensor,
    positions: tl.tensor,
    steps: tl.tensor,
    best: tl.tensor,
    proposed: tl.tensor,
    vocab: tl.tensor,
    logits_row: tl.tensor,
    mask_id: tl.tensor,
    spans: tl.tensor,
    size: tl.constexpr,
) -> None:
    """Of one span of one row: the greatest sum of logit and noise, and its token."""
    span, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    token = span * size + tl.arange(0, size)
    is_candidate = (token < vocab) & (token != mask_id)
    logit = tl.load(logits + row * logits_row + token, mask=token < vocab, other=float("-inf")).to(tl.float32)

    seed = tl.load(seeds + row)
    state = _mixed(seed.to(tl.uint32) ^ 0x9E3779B9)
    state = _mixed(state ^ (seed >> 32).to(tl.uint32))
    state = _counted(state, tl.load(positions + row))
    state = _counted(state, tl.load(steps + row))
    uniform = (_counted(state, token).to(tl.float32) + 0.5) * (1.0 / 2.0**32)
    # The largest hashes round to 1, where the noise would be -inf: then even the only token left could not win.
    uniform = tl.minimum(uniform, 1.0 - 2.0**-24)
    noisy = logit - tl.load(temperatures + row) * tl.log(_exponential(uniform))

    noisy = tl.where(is_candidate & (noisy == noisy), noisy, float("-inf"))
    top = tl.max(noisy, 0)
    at = row * spans + span
    tl.store(best + at, top)
    tl.store(proposed + at, tl.min(tl.where(is_candidate & (noisy == top), token, _NO_TOKEN), 0))


@triton.jit
def _merge_draws(
    best: tl.tensor, proposed: tl.tensor, tokens: tl.tensor, spans: tl.tensor, padded_spans: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    span = tl.arange(0, padded_spans)
    at, exists = row * spans + span, span < spans
    noisy = tl.load(best + at, mask=exists, other=float("-inf"))
    token = tl.load(proposed + at, mask=exists, other=_NO_TOKEN)
    tl.store(tokens + row, tl.min(tl.where(noisy == tl.max(noisy, 0), token, _NO_TOKEN), 0).to(tl.int64))


@triton.jit
def _exponential(uniform: tl.tensor) -> tl.tensor:
    """-log1p(-uniform), which Triton lacks: a logarithm, scaled by what the rounding of 1 - uniform has changed."""
    rounded = 1.0 - uniform
    lost = tl.where(rounded == 1.0, 1.0, 1.0 - rounded)
    return tl.where(rounded == 1.0, uniform, -tl.log(rounded) * (uniform / lost))


@triton.jit
def _counted(state: tl.tensor, counter: tl.tensor) -> tl.tensor:
    """One more link of the chain in `engine.core.noise.hashed`; uint32 wraps where that masks."""
    return _mixed((state + 0x9E3779B9) ^ counter.to(tl.uint32))


@triton.jit
def _mixed(x: tl.tensor) -> tl.tensor:
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)
