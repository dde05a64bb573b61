"""Whether codes are made by Triton on CUDA, or by torch's functions: tried once, against the definition."""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from engine.kernels.kv import formats
from engine.kernels.kv.formats import LARGEST, Quantised
from engine.kernels.triton_available import has_triton

logger = logging.getLogger(__name__)

Write = Callable[[Quantised, Tensor, slice | Tensor, float], None]
"""As `formats.write` into codes."""


@cache
def triton() -> Write | None:
    """Triton's kernel, or None if it is not available; the log has the reason."""
    if not has_triton():
        logger.info("no Triton: torch makes codes of keys and values on CUDA, in a dozen launches")
        return None
    try:
        from engine.kernels.kv.triton_write import write

        if agrees(write, torch.device("cuda")):
            return write
        logger.warning("the Triton kernel that writes codes computes something else than torch: not used")
    except Exception as error:  # noqa: BLE001 - whatever its compiler raises: torch can do without
        logger.warning("the Triton kernel that writes codes does not work here (%s): not used", error)
    return None


@torch.no_grad()
def agrees(write: Write, device: torch.device) -> bool:
    """Whether codes and scales are those of the definition, bit by bit, for each dtype of rows."""
    count, heads, head_dim = 21, 2, 80
    waves = torch.arange(count * heads * head_dim, device=device).mul(0.7).sin_().view(count, heads, head_dim)
    waves *= torch.logspace(-9, 3, count, device=device).view(-1, 1, 1)
    waves[3], waves[5, 1, 7] = 0.0, torch.inf
    slots = torch.arange(count, device=device).flip(0)
    return all(
        _same(write, waves.to(dtype), stored, where, prune)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for stored in LARGEST
        for where, prune in ((slots, 0.0), (slice(0, count), 0.3))
    )


def _same(write: Write, rows: Tensor, stored: torch.dtype, slots: slice | Tensor, prune: float) -> bool:
    results = []
    for function in (write, formats.write):
        codes = torch.zeros(rows.shape[1], len(rows), rows.shape[2], dtype=torch.int8, device=rows.device)
        scales = torch.zeros(rows.shape[1], len(rows), device=rows.device)
        function(Quantised(codes.view(stored), scales), rows, slots, prune)
        results.append((codes, scales.view(torch.int32) & torch.where(scales.isnan(), 0, -1)))
    return all(map(torch.equal, *results))
