"""Which keys and values a request gives up, where it keeps `kv_budget` tokens at most (R-KV, arXiv 2505.24133).

One set for all heads and layers. Positions that are gone are no rows any more, and no row sees them. Models that attend
in both directions give up what stands before a block in the step that opens it, whose rows are the ones that will read
the rest: the first step still holds everything. Block-causal ones give up what stands before a block when it becomes
final, and prompts are read in parts, so that `kv_budget`, `kv_buffer` and a block bound what a request ever holds. When
it is read again after a preemption, it gives up the same at the same places. A new ranking is one line in `RANKERS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from engine.core.arrays import Floats, Ids
from engine.core.noise import uniform
from engine.core.params import DiffusionParams
from engine.core.requests.request import Request
from engine.core.steps.plan import Eviction, StepPlan
from engine.core.steps.policies import CachePolicy


@dataclass(frozen=True, slots=True)
class Ranker:
    """What candidates are worth: by what kernels say, or by their place alone."""

    weight: Callable[[DiffusionParams], float] | None = None
    """As `Eviction.weight`."""
    rank: Callable[[Request, Ids], Floats] | None = None
    """Positions -> what each is worth."""


RANKERS: dict[str, Ranker] = {
    "rkv": Ranker(weight=lambda diffusion: diffusion.kv_lambda),
    "attention": Ranker(weight=lambda _: 1.0),
    "recent": Ranker(rank=lambda _, positions: positions.astype(np.float64)),
    "random": Ranker(rank=lambda request, positions: uniform(request.sampling.seed, positions, 0)),
}


def within_budget(plan: StepPlan, policy: CachePolicy, budget: int) -> StepPlan:
    """The policy's plan, without rows that are gone, and with what goes after it."""
    if plan.request.spec.is_block_causal:
        return _as_read(plan, policy, budget)
    return _at_opening(_without_evicted(plan), budget)


def survivors(request: Request, eviction: Eviction, retention: Floats | None) -> Ids:
    """The candidates that stay, ascending; `retention` is what kernels say, if they were asked."""
    candidates, rank = eviction.candidates, RANKERS[request.diffusion.kv_score].rank
    worth = rank(request, candidates) if rank else retention
    assert worth is not None, "an eviction without its scores"
    worth = np.where(candidates < request.diffusion.kv_sink, np.inf, worth)
    best_first = np.lexsort((candidates, -worth))  # of equals the older one
    return np.sort(candidates[best_first[: eviction.keep]])


def _without_evicted(plan: StepPlan) -> StepPlan:
    """Targets and their rows stay: nothing from the open block on is ever a candidate."""
    if (kept := plan.request.kept) is None:
        return plan
    stays = kept[plan.rows]
    return replace(plan, rows=plan.rows[stays], horizons=plan.horizons[stays])


def _at_opening(plan: StepPlan, budget: int) -> StepPlan:
    """With what stands before the block given up, if this step opens it and that is too much."""
    request, block = plan.request, plan.request.block
    end = max(block.start - request.spec.shift, 0)  # the row before a block has the logits of its first token
    if block.step or request.num_kept_before(block.start) <= budget:
        return plan
    first, last = np.searchsorted(plan.rows, (block.start, block.end)).tolist()
    return replace(plan, eviction=_eviction(request, end, budget - (block.start - end), slice(first, last)))


def _as_read(plan: StepPlan, policy: CachePolicy, budget: int) -> StepPlan:
    """Cut where the buffer is full, and with what goes then."""
    request = plan.request
    length, most = request.block_length, budget + request.diffusion.kv_buffer
    room = (most - request.num_kept_before(request.committed)) // length * length
    new = min(int(plan.rows[-1]) + 1, request.block.rows_start) - request.committed
    end = request.committed + min(new, room)
    if new <= 0 or request.num_kept_before(end) + length <= most:
        return plan
    last = int(np.searchsorted(plan.rows, end))
    if last < len(plan.rows):  # no later row sees what goes, in whatever parts the prompt is read
        cut = policy.cut(plan, last)
        assert cut is not None, "a prompt that cannot be read in parts"
        plan = cut
    return replace(plan, eviction=_eviction(request, end - length, budget - length, slice(last - length, last)))


def _eviction(request: Request, end: int, keep: int, judges: slice) -> Eviction:
    """Of what stands before `end`."""
    kept = request.kept
    candidates = np.arange(end) if kept is None else np.flatnonzero(kept[:end])
    weight = RANKERS[request.diffusion.kv_score].weight
    return Eviction(candidates, keep, judges, weight(request.diffusion) if weight else None)
