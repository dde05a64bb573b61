"""Dream's own sampler (arXiv 2508.15487) as an unmask policy: its times, its schedule, its four orders."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.core.arrays import Mask
from engine.core.noise import uniform
from engine.core.ranking import top
from engine.core.requests.request import Request
from engine.core.steps.policies import UnmaskPolicy
from engine.core.steps.scores import Needs, Scores


@lru_cache(maxsize=64)
def dream_times(steps: int, eps: float) -> NDArray[np.float32]:
    """[steps + 1] the times from 1 down to eps between which Dream's steps lie, rounded as `torch.linspace` does it."""
    start, end = np.float32(1), np.float32(eps)
    i, step = np.arange(steps + 1, dtype=np.float32), (end - start) / np.float32(steps)
    times = np.where(i < (steps + 1) // 2, start + step * i, end - step * (np.float32(steps) - i))
    times.flags.writeable = False
    return times


@lru_cache(maxsize=1024)  # for more requests than run at once: each asks in every step
def dream_schedule(num_masked: int, steps: int, eps: float) -> NDArray[np.int32]:
    """Tokens per step of Dream's sampler: of the masks left, the share 1 - s/t of a step from time t to s.

    Steps whose share is less than one token are left out: they would change nothing, so they need no forward.
    """
    times, counts, left = dream_times(steps, eps), [], num_masked
    shares = 1 - times[1:-1] / times[:-2]
    some = np.flatnonzero(np.float32(left) * shares >= 1)  # with all masks left: earlier steps take none
    for share in shares[some[0] :] if len(some) else ():
        counts.append(int(np.float32(left) * share))
        left -= counts[-1]
    schedule = np.array([count for count in (*counts, left) if count], np.int32)
    schedule.flags.writeable = False
    return schedule


class Dream(UnmaskPolicy):
    """Dream's own sampler (arXiv 2508.15487): over the canvas as one block, as many as scheduled, ranked by `alg`.

    Its scores are those of the processed distribution. With `alg_temp` they are drawn without replacement in proportion
    to exp(certainty / alg_temp): the highest sums of certainty / alg_temp and Gumbel noise are such a draw.
    """

    cuts_canvas = True  # into one block

    def needs(self, request: Request) -> Needs:
        alg = request.diffusion.alg
        return Needs(processed=True, entropy=alg == "entropy", margin=alg == "topk_margin")

    def select(self, request: Request, scores: Scores) -> Mask:
        diffusion, block = request.diffusion, request.block
        steps = diffusion.steps or block.num_masked
        if diffusion.alg == "origin":
            return self._next_by_chance(request, scores, dream_times(steps, diffusion.eps))
        schedule = dream_schedule(block.num_masked, steps, diffusion.eps)
        certainty = self._certainty(diffusion.alg, scores)
        if diffusion.alg_temp:
            noise = uniform(request.sampling.seed, scores.positions, request.decoding_steps)
            certainty = certainty / diffusion.alg_temp - np.log(-np.log(noise))
        return top(certainty, int(schedule[min(block.step, len(schedule) - 1)]))

    def _certainty(self, alg: str, scores: Scores) -> NDArray[np.float64]:
        match alg:
            case "entropy":
                assert scores.entropy is not None
                return -scores.entropy
            case "topk_margin":
                assert scores.margin is not None
                return scores.margin
            case _:
                return scores.confidence

    def _next_by_chance(self, request: Request, scores: Scores, times: NDArray[np.float32]) -> Mask:
        """`origin` reveals every mask with probability 1 - s/t in the step from t to s, and the last step the rest.

        So a mask is left at time s with probability s: one uniform number per position is the time at which it is
        revealed. Now the targets of the earliest step that has any are revealed; steps without any need no forward.
        """
        moment = uniform(request.sampling.seed, scores.positions)
        step = np.minimum(np.searchsorted(-times[1:], -moment), len(times) - 2)
        return np.asarray(step == step.min())
