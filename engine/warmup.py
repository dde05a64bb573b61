"""The first forwards of an engine with compiled parts, run at load so that no request waits for the compiler.

Their rows are nobody's, and the pool is afterwards as it was. Knows shapes; no requests, no scheduler.
"""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from engine.attention import Segment
from engine.batch import Batch
from engine.runner import Runner
from engine.transfer import to_device

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with forwards done and forwards in all."""

REQUESTS, ROWS = (8, 2), 32
"""Requests of each forward, and rows of each of them. The compiler takes what it sees first for typical."""


@torch.inference_mode()
def warm_up(runner: Runner, max_batch_rows: int, progress: Progress | None = None) -> None:
    """Has compiled what forwards of up to so many rows may need; without a `progress` to tell, the log is told.

    FlexAttention is compiled for one number of blocks of rows, for any other, and for a single one; dense parts for any
    number of rows, and for a single one.
    """
    begun = time.perf_counter()
    if not progress:
        logger.info("compiling; this takes a minute or so unless the compiler finds it in its cache")
    pool, positions = runner.pool, runner.model.config.max_positions
    slots = pool.keys.shape[2]
    room = min(max_batch_rows, slots)
    counts = [[min(ROWS, positions, room // requests)] * requests for requests in REQUESTS if requests <= room]
    most = max(map(sum, counts), default=1)
    kept = pool.keys[:, :, :most].clone(), pool.values[:, :, :most].clone()
    try:
        for done, rows in enumerate([*counts, [1]]):
            if progress:
                progress(done, len(counts) + 1)
            runner.forward(_batch(rows, runner.device)).logits[:].cpu()  # what fails on the device should fail here
    finally:
        pool.keys[:, :, :most], pool.values[:, :, :most] = kept
    if not progress:
        logger.info("compiled in %.1f s", time.perf_counter() - begun)


def _batch(rows: Sequence[int], device: torch.device) -> Batch:
    """So many rows of each of some sequences, all of them targets that see all."""
    starts = np.cumsum([0, *rows])
    total = int(starts[-1])
    return Batch(
        ids=torch.zeros(total, dtype=torch.int64, device=device),
        positions=to_device(np.concatenate([np.arange(count) for count in rows]), device),
        slots=torch.arange(total, device=device),
        logit_rows=torch.arange(total, device=device),
        segments=tuple(
            Segment(int(start), int(start) + count, slice(0, total)) for start, count in zip(starts, rows, strict=False)
        ),
        watched=(),
    )
