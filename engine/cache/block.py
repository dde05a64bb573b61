"""Cache policies of block-causal models, whose rows see nothing behind their block: keys and values of decoded blocks
are final (SDAR, arXiv 2510.06303; Fast-dLLM v2, arXiv 2509.26328).

Keys and values of a block that were computed while it held masks are not final. So a block is computed once more when
all its tokens are known, in the forward that is the next block's first one.
"""

from dataclasses import replace

import numpy as np

from engine.core.plan import CachePolicy, StepPlan
from engine.core.request import Ids, Request


class BlockCache(CachePolicy):
    """Computes what is not final yet, up to the open block's end: exact.

    That is the prompt, or the block decoded before, and the open block. Where logits are shifted, the first token of a
    block is decoded from the row before the block, before any other: the forward that finishes the block before says
    it, and no row of the open block is computed yet.
    """

    attention = "block_causal"
    computes_block = True

    def plan(self, request: Request) -> StepPlan:
        block = request.block
        source = block.start - request.spec.shift
        if 0 <= source < block.start and request.masked[block.start]:
            first, targets = min(request.committed, source), np.array([block.start])
            return _plan(request, np.arange(first, block.start), targets)
        return _plan(request, np.arange(request.committed, block.end), request.targets)

    def cut(self, plan: StepPlan, max_rows: int) -> StepPlan | None:
        """Whole blocks before the open one, whose rows see nothing behind them, and no targets."""
        request, length = plan.request, plan.request.block_length
        first = int(plan.rows[0])
        end = min((first + max_rows) // length * length, request.block.start)
        if not first < end < first + len(plan.rows):
            return None
        return replace(plan, rows=plan.rows[: end - first], horizons=plan.horizons[: end - first], targets=_NONE)


class SubBlockCache(BlockCache):
    """Computes the sub-block that is being decoded alone, once its first token is known (Fast-dLLM v2's block cache).

    All other positions of the open block keep the keys and values that they had when they were last computed. The
    whole block is computed again when it is finished: what lies before the open block is exact.
    """

    computes_block = False

    def plan(self, request: Request) -> StepPlan:
        block, targets = request.block, request.targets
        length = request.diffusion.sub_block_length or request.block_length
        start = block.start + (int(targets[0]) - block.start) // length * length
        if not block.is_computed or request.masked[start]:
            return super().plan(request)
        return _plan(request, np.arange(start, min(start + length, block.end)), targets)


_NONE = np.empty(0, np.int64)


def _plan(request: Request, rows: Ids, targets: Ids) -> StepPlan:
    """Each row sees what stands up to the end of its own block."""
    length = request.block_length
    return StepPlan(request, rows, np.minimum((rows // length + 1) * length, request.block.end), targets)
