"""Where the positions to fill are, and where blocks are cut."""

import numpy as np

from engine.core.arrays import Ids
from engine.core.config import ModelSpec
from engine.core.params import block_length
from engine.core.requests.submission import Submission


def positions_to_fill(submission: Submission, spec: ModelSpec) -> Ids:
    """The masked positions of a fresh canvas, ascending: those of the holes, or those behind the prompt.

    Behind the prompt there are `max_tokens`, and what their last block holds beyond; if the context ends before, the
    last block is shorter.
    """
    if not submission.holes:
        start, length = len(submission.prompt_ids), block_length(submission.diffusion, spec)
        grid = first_block_start(start, length, spec)
        end = start + submission.sampling.max_tokens + (length - 1) * submission.overshoots
        canvas = -(-(end - grid) // length) * length
        return np.arange(start, min(grid + canvas, spec.max_model_len))
    lengths = np.array([hole.length for hole in submission.holes])
    return np.repeat([hole.offset for hole in submission.holes], lengths) + np.arange(lengths.sum())


def first_block_start(answer_start: int, length: int, spec: ModelSpec) -> int:
    """Where the first block starts that holds positions to fill: at the first of them.

    Where blocks are multiples of `length`, the first one may begin with tokens of the prompt.
    """
    return answer_start // length * length if spec.has_grid else answer_start


def count_blocks(answer: Ids, start: int, length: int) -> int:
    """Number of blocks of this length, cut from `start` on, that hold any of these positions."""
    if answer[-1] - answer[0] == len(answer) - 1:  # no gaps; some policies ask in every step
        return -(-(int(answer[-1]) + 1 - start) // length)
    return 1 + int(np.count_nonzero(np.diff((answer - start) // length)))
