"""What scoring asks of logits: the best token, log-odds and draws, by the fastest implementation for their device.

Knows logits [rows, vocab] and the head that makes them, but no requests and no policies: `engine.scoring` decides which
rows are asked for what. For float32 on a CPU, this project's own kernels (`native_proposals`) read logits once, where
torch reads and writes them a dozen times; on CUDA Triton's (`triton_proposals`) do. `_own` is the place where
implementations are chosen; all of them have the results of the functions in torch below, log-odds to the last bits of
float32, and drawn tokens exactly on a CPU and but for ties within rounding on CUDA.
"""

import logging
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from engine.core.noise import continued, hashed
from engine.kernels.compiled import linear
from engine.kernels.library import checked
from engine.kernels.native_proposals import Kernel, takes
from engine.kernels.triton_available import has_triton

logger = logging.getLogger(__name__)

TOO_CLOSE = 2.0**-19
"""Two noisy logits that lie closer together than this times their size are told apart by torch alone: its logarithms
and those of the kernels differ by less than a tenth of it."""

LARGEST_NOISE = 32.0
"""Gumbel noise of 32-bit hashes lies within this; its own rounding, too, is relative to a size."""


def best_token(logits: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
    """The most probable token of each row but the mask, of equals the one with the lowest id, and its log-odds.

    logits [rows, vocab] -> int64 [rows], float32 [rows].
    """
    own = _own(logits)
    return own.best_token(logits, mask_id) if own else _best_token(logits.float(), mask_id)


def log_odds(logits: Tensor, tokens: Tensor) -> Tensor:
    """log(p / (1 - p)) of the tokens [rows] under softmax(logits [rows, vocab]) -> float32 [rows].

    A token's logit minus the log-sum-exp of all other logits: precise for sure models, infinite for the only token that
    is possible, NaN if any logit of the row is.
    """
    own = _own(logits)
    return own.log_odds(logits, tokens) if own else _log_odds(logits, tokens)


def draw(
    logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor, steps: Tensor, mask_id: int | None
) -> Tensor:
    """Draws a token of each row but the mask from softmax(logits / temperature), for logits [rows, vocab].

    temperature float32 [rows], all others int64 [rows]. Gumbel noise is hashed (seed, position, step, token).
    """
    if logits.device.type == "cuda" and (on_cuda := triton()):
        return on_cuda.draw(logits, temperature, seeds, positions, steps, mask_id)
    # The kernel reads addresses: torch refuses what is on two devices.
    own = kernel() if takes(logits) and temperature.device == logits.device else None
    if own is None:
        return _draw(logits, temperature, seeds, positions, steps, mask_id)
    tokens, best, second = own.draw(logits, temperature, hashed(seeds, positions, steps), mask_id)
    is_sure = best - second > TOO_CLOSE * (best.abs() + LARGEST_NOISE * temperature)  # not where NaN
    for row in (~is_sure).nonzero().squeeze(-1).tolist():
        some = slice(row, row + 1)
        tokens[some] = _draw(logits[some], temperature[some], seeds[some], positions[some], steps[some], mask_id)
    return tokens


def head(hidden: Tensor, weight: Tensor) -> Tensor:
    """The product of hidden [rows, dim] and the head's weight [vocab, dim] -> logits [rows, vocab]."""
    if torch.compiler.is_compiling():
        return linear(hidden, weight)
    own = _own_head(hidden, weight)
    return own.product(hidden, weight) if own else linear(hidden, weight)


def propose(hidden: Tensor, weight: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
    """`best_token` of the logits of `head`. Where `fuses` says so, these are reduced as they arise, never stored."""
    own = _own_head(hidden, weight)
    return own.propose(hidden, weight, mask_id) if own else best_token(linear(hidden, weight), mask_id)


def fuses(weight: Tensor) -> bool:
    """Whether `propose` is one pass over this weight, which must be as it was loaded.

    Its log-odds then differ in the last bits from those of stored logits.
    """
    is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.layout == torch.strided
    return is_plain and weight.is_contiguous() and kernel() is not None


def bytes_per_logit(weight: Tensor) -> int:
    """Bytes that `propose` takes at most for each logit: the logit itself, and in torch two float32 copies."""
    if fuses(weight):
        return 0
    reads_in_place = weight.device.type == "cuda" and triton() is not None
    return weight.dtype.itemsize + (0 if reads_in_place else 8)


@cache
def kernel() -> Kernel | None:
    """The CPU's kernels, or None if they are not available; the log has the reason."""
    return checked("scoring", Kernel, _agrees)


@cache
def triton() -> "TritonProposals | None":
    """Triton's kernels for CUDA, or None if they are not available; the log has the reason."""
    if not has_triton():
        logger.info("no Triton: scoring on CUDA is torch's, with copies of all logits")
        return None
    try:
        from engine.kernels import triton_proposals

        if _agree_on_cuda(triton_proposals):
            return triton_proposals
        logger.warning("the Triton kernels for scoring compute something else than torch: not used")
    except Exception as error:  # noqa: BLE001 - whatever its compiler raises: torch can do without
        logger.warning("the Triton kernels for scoring do not work here (%s): not used", error)
    return None


class Proposals(Protocol):
    """An implementation of `best_token` and `log_odds`."""

    def best_token(self, logits: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]: ...

    def log_odds(self, logits: Tensor, tokens: Tensor) -> Tensor: ...


class TritonProposals(Proposals, Protocol):
    """An implementation of `draw`, too."""

    def draw(
        self, logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor, steps: Tensor, mask_id: int | None
    ) -> Tensor: ...


def _own(logits: Tensor) -> Proposals | None:
    """The implementation for these logits; None is torch."""
    if logits.device.type == "cuda":
        return triton()
    return kernel() if takes(logits) else None


def _own_head(hidden: Tensor, weight: Tensor) -> Kernel | None:
    return kernel() if takes(hidden) and fuses(weight) else None


def _best_token(logits: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
    if mask_id is None:
        tokens = logits.argmax(dim=-1)
    else:
        mask_logits = logits[:, mask_id].clone()
        logits[:, mask_id] = -torch.inf
        tokens = logits.argmax(dim=-1)
        logits[:, mask_id] = mask_logits
    return tokens, _log_odds(logits, tokens)


def _log_odds(logits: Tensor, tokens: Tensor) -> Tensor:
    """Hides the tokens' logits for a moment: a copy of all logits would take as much memory as they."""
    at = tokens[:, None]
    chosen = logits.gather(-1, at)
    others = logits.scatter_(-1, at, -torch.inf).logsumexp(dim=-1)
    logits.scatter_(-1, at, chosen)
    return chosen.squeeze(-1) - others


def _draw(
    logits: Tensor, temperature: Tensor, seeds: Tensor, positions: Tensor, steps: Tensor, mask_id: int | None
) -> Tensor:
    perturbed = noisy(logits, temperature, hashed(seeds, positions, steps), mask_id)
    return perturbed.argmax(dim=-1)


def noisy(logits: Tensor, temperature: Tensor, states: Tensor, mask_id: int | None) -> Tensor:
    """logits [rows, vocab] + temperature * Gumbel noise, -inf for the mask. states [rows]: hashes of all but tokens."""
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    uniform = (continued(states[:, None], tokens).float() + 0.5) / 2.0**32
    # The largest hashes round to 1, where the noise would be -inf: then even the only token left could not win.
    uniform = uniform.clamp(max=1.0 - 2.0**-24)
    # -log1p(-u) is an exponential variate. It is precise where it is small, which is where the Gumbel noise is large.
    gumbel = -torch.log(-torch.log1p(-uniform))
    perturbed = logits + temperature[:, None] * gumbel
    if mask_id is not None:
        perturbed[:, mask_id] = -torch.inf
    return perturbed


@torch.no_grad()
def _agree_on_cuda(own: TritonProposals) -> bool:
    """Whether Triton's functions match torch's on the current CUDA device: draws but for ties within rounding."""
    return all(_agree_for(own, torch.device("cuda"), dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))


def _agree_for(own: TritonProposals, device: torch.device, dtype: torch.dtype) -> bool:
    rows, vocab, mask_id = 21, 5 * 4096 + 777, 4500
    logits = torch.arange(rows * vocab, device=device).mul(0.7).sin_().mul_(9).view(rows, vocab).to(dtype)
    token, odds = own.best_token(logits, mask_id)
    best, expected = _best_token(logits.float(), mask_id)
    counts, heat = torch.arange(rows, device=device), torch.linspace(0.1, 2.0, rows, device=device)
    perturbed = noisy(logits.float(), heat, hashed(counts, counts, counts), mask_id)
    drawn = own.draw(logits, heat, counts, counts, counts, mask_id)[:, None]
    is_drawn = perturbed.gather(-1, drawn) >= perturbed.amax(dim=-1, keepdim=True) - 1e-3
    return torch.equal(token, best) and torch.allclose(odds, expected, atol=1e-4) and bool(is_drawn.all())


@torch.no_grad()
def _agrees(own: Kernel) -> bool:
    """Whether all functions of the kernels match torch's. Every loop of theirs has a remainder at these shapes."""
    rows, vocab, dim, mask_id = 21, 5 * 4096 + 777, 261, 4500
    hidden, weight = (
        torch.arange(count * dim, dtype=torch.float32).mul_(step).sin_().view(count, dim)
        for count, step in ((rows, 0.7), (vocab, 0.113))
    )
    logits, some = linear(hidden, weight), torch.arange(rows)
    heat, states = torch.linspace(0.1, 2.0, rows), hashed(some)
    best, expected = _best_token(logits, mask_id)
    leaders = noisy(logits, heat, states, mask_id).topk(2)
    (token, token_odds), (proposed, proposed_odds) = (
        own.best_token(logits, mask_id),
        own.propose(hidden, weight, mask_id),
    )
    drawn, highest, second = own.draw(logits, heat, states, mask_id)
    found = ((token, best), (proposed, best), (drawn, leaders.indices[:, 0]))
    pairs = (
        (token_odds, expected),
        (proposed_odds, expected),
        (own.log_odds(logits, some), _log_odds(logits, some)),
        (own.product(hidden, weight), logits),
        (torch.stack((highest, second), dim=-1), leaders.values),
    )
    return all(torch.equal(ours, theirs) for ours, theirs in found) and all(
        torch.allclose(ours, theirs, atol=1e-4, rtol=1e-5) for ours, theirs in pairs
    )
