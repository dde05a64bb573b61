"""Cache policies: which rows a step recomputes. All other positions keep their last keys and values.

The policies of Fast-dLLM (arXiv 2505.22618, section 3.2), `window` and `delayed` are here, d2Cache is in `d2`. These
are for models that attend in both directions: every row's horizon is the end of the visible positions, which is the
canvas's end or `lookahead` positions behind the open block. Those of block-causal models are in `block`. A new policy
is one class and one line in `CACHES`.
"""

from functools import reduce

import numpy as np

from engine.cache.block import BlockCache, SubBlockCache
from engine.cache.d2 import D2Cache
from engine.core.arrays import Ids
from engine.core.requests.request import Request
from engine.core.steps.plan import StepPlan
from engine.core.steps.policies import CachePolicy


def _rows(request: Request, start: int, end: int) -> StepPlan:
    return _plan(request, np.arange(start, end))


def _plan(request: Request, rows: Ids) -> StepPlan:
    return StepPlan(request, rows, np.full(len(rows), request.block.visible_end), request.targets)


def _window_start(request: Request) -> int:
    """The first row whose logits the open block needs: families with shifted logits read them one row earlier."""
    return max(request.block.start - request.spec.shift, 0)


class NoCache(CachePolicy):
    """Computes all that is visible at every step: exact, as in LLaDA's and Dream's own samplers."""

    allows_eviction = False
    keeps = False

    def plan(self, request: Request) -> StepPlan:
        return _rows(request, 0, request.block.visible_end)


class PrefixCache(CachePolicy):
    """A block's first step refreshes all that is visible; later steps compute the block and what follows it."""

    def plan(self, request: Request) -> StepPlan:
        return _rows(request, _window_start(request) if request.block.step else 0, request.block.visible_end)


class DualCache(CachePolicy):
    """A block's first step refreshes all that is visible; later steps, only the block (Fast-dLLM's DualCache)."""

    def plan(self, request: Request) -> StepPlan:
        if request.block.step == 0:
            return _rows(request, 0, request.block.visible_end)
        return _rows(request, _window_start(request), request.block.end)


class WindowCache(CachePolicy):
    """DualCache whose refreshes, except the very first, compute only a window around the block that opens.

    They also compute what the last step decoded, wherever that is, and what becomes visible with the block: these
    tokens have no keys and values yet.
    """

    def plan(self, request: Request) -> StepPlan:
        block, diffusion = request.block, request.diffusion
        if block.step:
            return _rows(request, _window_start(request), block.end)
        if block.index == 0:
            return _rows(request, 0, request.block.visible_end)
        start = max(_window_start(request) - diffusion.refresh_before, 0)
        window = np.arange(start, min(block.end + diffusion.refresh_after, block.visible_end))
        fresh = np.arange(block.fresh, block.visible_end)
        window = reduce(np.union1d, (request.history.decoded, window, fresh))
        if diffusion.prompt_refresh and block.index % diffusion.prompt_refresh == 0:
            window = np.union1d(request.prompt_positions, window)
        return _plan(request, window)


class DelayedCache(WindowCache):
    """WindowCache that, within a block, recomputes decoded tokens in the next step and then no more.

    That is dKV-Cache's delay of one step (arXiv 2505.15781). The fewer tokens a step decodes, the longer tokens stay
    outdated: the policy is for steps that decode several.
    """

    def plan(self, request: Request) -> StepPlan:
        if not request.block.step:
            return super().plan(request)
        targets = request.targets
        sources = np.maximum(targets - request.spec.shift, 0)  # the rows that have the targets' logits
        return _plan(request, reduce(np.union1d, (targets, sources, request.history.decoded)))


CACHES: dict[str, CachePolicy] = {
    "none": NoCache(),
    "prefix": PrefixCache(),
    "dual": DualCache(),
    "window": WindowCache(),
    "delayed": DelayedCache(),
    "d2": D2Cache(),
    "block": BlockCache(),
    "sub_block": SubBlockCache(),
}
