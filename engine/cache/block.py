"""Cache policies of block-causal models, whose rows see nothing behind their block: keys and values of decoded blocks
are final (SDAR, arXiv 2510.06303; Fast-dLLM v2, arXiv 2509.26328).

Keys and values of a block that were computed while it held masks are not final. So a block is computed once more when
all its tokens are known, in the forward that is the next block's first one.
"""

from dataclasses import replace

import numpy as np

from engine.core.arrays import Ids
from engine.core.config import ModelSpec
from engine.core.requests.request import Request
from engine.core.steps.plan import StepPlan
from engine.core.steps.policies import CachePolicy


class BlockCache(CachePolicy):
    """Computes what is not final yet, up to the open block's end: exact.

    That is the prompt, or the block decoded before, and the open block. Where logits are shifted, or finished rows say
    the next token, the first token of a block is decoded from the row before the block, before any other: the forward
    that finishes the block before says it, and no row of the open block is computed yet. A draft is verified by the
    same rows that it was made by, each of which then sees nothing behind itself.
    """

    attention = "block_causal"
    computes_block = True

    def plan(self, request: Request) -> StepPlan:
        block = request.block
        if request.verifies:
            return _plan_before(request, request.targets)
        if 0 < request.lead <= block.start and request.masked[block.start] and not block.is_drafted:
            return _plan_before(request, np.array([block.start]))
        return _plan(request, np.arange(_first_row(request), block.rows_end), request.targets)

    def cut(self, plan: StepPlan, max_rows: int) -> StepPlan | None:
        """Rows before the open block's, of which no later row is seen, and no targets."""
        if max_rows < 1:
            return None
        request, length, rows = plan.request, plan.request.commit_length, plan.rows
        past = int(rows[max_rows] if max_rows < len(rows) else rows[-1] + 1)  # there may be gaps before it
        count = int(np.searchsorted(rows, min(past // length * length, request.block.rows_start)))
        if not 0 < count < len(rows):
            return None
        # An eviction comes with the last rows of its plan.
        return replace(plan, rows=rows[:count], horizons=plan.horizons[:count], targets=_NONE, eviction=None)


class SubBlockCache(BlockCache):
    """Computes the sub-block that is being decoded alone, once its first token is known (Fast-dLLM v2's block cache).

    All other positions of the open block keep the keys and values that they had when they were last computed. The
    whole block is computed again when it is finished: what lies before the open block is exact.
    """

    computes_block = False

    def fits(self, spec: ModelSpec) -> bool:
        """Not where positions show other tokens in each step: their keys and values would be those of tokens gone. Nor
        where rows are routed by blocks, of which a sub-block may be a part.
        """
        return super().fits(spec) and spec.mask_id is not None and spec.routing_block is None

    def plan(self, request: Request) -> StepPlan:
        block, targets = request.block, request.targets
        length = request.diffusion.sub_block_length or request.block_length
        start = block.start + (int(targets[0]) - block.start) // length * length
        if not block.is_computed or request.masked[start]:
            return super().plan(request)
        return _plan(request, np.arange(start, min(start + length, block.end)), targets)


_NONE = np.empty(0, np.int64)


def _first_row(request: Request) -> int:
    """The first position without final keys and values, or where its routing block begins."""
    routing = request.spec.routing_block or 1
    return request.committed // routing * routing


def _plan(request: Request, rows: Ids, targets: Ids) -> StepPlan:
    """Each row of the open block sees all of it; each one before it what becomes final with it."""
    is_open = rows >= request.block.rows_start
    return StepPlan(request, rows, np.where(is_open, request.block.rows_end, _final(request, rows)), targets)


def _plan_before(request: Request, targets: Ids) -> StepPlan:
    """A plan whose targets, neighbours, are said by the rows before them; each row sees what becomes final with it."""
    shift = request.spec.shift or 1
    rows = np.arange(min(request.committed, targets[0] - shift), targets[-1] + 1 - shift)
    return StepPlan(request, rows, _final(request, rows), targets, is_causal=request.spec.says_next)


def _final(request: Request, rows: Ids) -> Ids:
    """One past the last position that becomes final with each row."""
    length = request.commit_length
    return (rows // length + 1) * length
