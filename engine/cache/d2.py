"""d2Cache (arXiv 2509.23094): each step recomputes the positions that matter now, wherever they are.

The policy ranks by what the request's `History` holds; it sees no tensors. Three defects of the published code are
fixed here: confidences are renewed whenever a position is scored, only recomputed positions become tokens, and a block
stays the whole block.
"""

import numpy as np

from engine.core.arrays import Floats, Ids, Mask
from engine.core.density import certainty_density
from engine.core.requests.request import Request
from engine.core.steps.plan import StepPlan
from engine.core.steps.policies import CachePolicy


class D2Cache(CachePolicy):
    """The first step computes all that is visible; later ones the best masked positions and what attention flows to.

    Section 4: (1) `current_k` masked positions by confidence x certainty density, those of the open block first;
    (2) what the last step decoded, since its embedding changed; (3) of the rest the positions that the attention
    rollout reaches most, up to a share `rollout_p` of its mass; (4) gaps of at most `inflate_w` between them.
    A block's first step also computes the positions that become visible with it.
    """

    reads_history = True
    allows_eviction = False

    def plan(self, request: Request) -> StepPlan:
        visible_end = request.block.visible_end
        chosen = np.ones(visible_end, dtype=np.bool_) if request.forwards == 0 else _chosen(request)
        rows = np.flatnonzero(chosen)
        masked = np.flatnonzero(request.masked[:visible_end])
        targets = masked[chosen[np.maximum(masked - request.spec.shift, 0)]]
        return StepPlan(request, rows, np.full(len(rows), visible_end), targets, rollout=True)


def _chosen(request: Request) -> Mask:
    """bool [visible end]: the positions to recompute after the first step."""
    params, history, block = request.diffusion, request.history, request.block
    chosen = np.zeros(block.visible_end, dtype=np.bool_)
    if block.step == 0:
        chosen[block.fresh :] = True
    # The row that carries a target's logits is the one to compute.
    chosen[np.maximum(_certain(request) - request.spec.shift, 0)] = True
    chosen[history.decoded] = True
    chosen |= _nucleus(np.where(chosen, 0.0, history.importance[: block.visible_end]), params.rollout_p) & ~chosen
    _inflate(chosen, params.inflate_w)
    return chosen


def _certain(request: Request) -> Ids:
    """Stage 1: the `current_k` best visible masked positions, up to the end of the block that holds the k-th mask.

    Those of the open block come first, so that there is always one that may become a token.
    """
    params, block, start = request.diffusion, request.block, request.answer_start
    masked = np.flatnonzero(request.masked)
    last = int(masked[min(params.current_k, len(masked)) - 1])
    length = block.end - block.start
    search_end = block.start + ((last - block.start) // length + 1) * length
    candidates = masked[masked < min(search_end, block.visible_end)]
    density = certainty_density(~request.masked[start:], params.sigma)
    scores = request.history.confidence[candidates] * density[candidates - start]
    return candidates[np.lexsort((-scores, candidates >= block.end))[: params.current_k]]


def _nucleus(weights: Floats, share: float) -> Mask:
    """Stage 3: the heaviest positions whose summed weight stays within `share` of the total, at least one."""
    order = np.argsort(-weights, kind="stable")
    mass = np.cumsum(weights[order])
    within = mass <= share * mass[-1]
    within[0] = True
    chosen = np.zeros(len(weights), dtype=np.bool_)
    chosen[order[within]] = True
    return chosen


def _inflate(chosen: Mask, width: int) -> None:
    """Stage 4, in place: fills the gaps between positions at most `width` apart."""
    positions = np.flatnonzero(chosen)
    near = np.diff(positions) <= width
    edges = np.zeros(len(chosen), np.int64)
    edges[positions[:-1][near]] += 1
    edges[positions[1:][near]] -= 1
    chosen |= np.cumsum(edges) > 0
