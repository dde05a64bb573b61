"""Masks of rows under full attention. Each row has a masked token in its answer [start, end) or in the EOS behind it.

`starts` and `ends` are [rows, 1]; masks are bool [rows, length].
"""

import torch
from torch import Tensor

BLOCK = 32
"""The block that masks imitate; decoding goes by the same."""
ENDED_SHARE = 0.4
"""The share of rows whose open block shows at most EOS at its end. Decode of the surest token first writes these EOS
before anything else. A model that has not met such blocks takes the answer to be as long as there is room for."""


def full_masks(starts: Tensor, ends: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Each row is masked in one of four ways: its answer at a uniform ratio, as LLaDA is tuned; all of it at a uniform
    ratio, which teaches copying; its answer from some word on, which teaches working step by step with nothing ahead to
    copy from; or as block decoding leaves it.
    """
    rows = len(starts)
    ratio, way, cut = torch.rand(3, rows, 1, generator=generator)
    drawn = torch.rand(rows, length, generator=generator) < ratio
    place = torch.arange(length) - starts  # negative in the prompt
    in_answer = place >= 0
    decoded, _ = block_masks(starts, ends, length, generator)
    ways = (
        (0.30, in_answer & drawn),
        (0.17, drawn),
        (0.19, place >= (cut * (ends - starts + 1)).long()),
        (0.34, decoded),
    )
    masked, below = torch.zeros_like(drawn), 0.0
    for share, ones in ways:
        masked |= ones & (way >= below) & (way < below + share)
        below += share
    return _with_one_at_least(masked, in_answer & (place <= ends - starts))


def block_masks(starts: Tensor, ends: Tensor, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What is masked, and the positions of the open block, one of those that the answer or the EOS behind it is in.

    Before that block all is clean, behind it all is masked. In it each token is masked at a ratio drawn for the row, or
    all are masked but some EOS at the end; the EOS that ends the answer is masked with it.
    """
    rows = len(starts)
    ratio, opened, ended, cut = torch.rand(4, rows, 1, generator=generator)
    place, lengths = torch.arange(length) - starts, ends - starts
    block = place.div(BLOCK, rounding_mode="floor")
    number = (opened * (lengths // BLOCK + 1)).long()
    is_open = block == number
    tail = lengths + 1
    known_from = tail + (cut * ((number + 1) * BLOCK + 1 - tail).clamp(min=0)).long()
    drawn = torch.rand(rows, length, generator=generator) < ratio
    masked = (is_open & torch.where(ended < ENDED_SHARE, place < known_from, drawn)) | (block > number)
    return _with_one_at_least(masked, is_open & (place <= lengths)), is_open


def _with_one_at_least(masked: Tensor, own: Tensor) -> Tensor:
    """`masked`, and all of `own` in rows of which it has none of them."""
    return masked | (own & ~(masked & own).any(dim=1, keepdim=True))
