"""Denoising of random tokens (DiffusionGemma's sampler): each step draws a whole block anew, and keeps what is sure.

A block's positions stay masked, and show tokens, until all of them become what the model then finds most probable. Each
step keeps the tokens of low entropy that it has drawn, and shows random ones elsewhere. The block ends when the best
tokens have not changed and are sure, or after `max_denoising_steps`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from engine.core.arrays import Ids, Mask
from engine.core.config import ModelSpec
from engine.core.noise import uniform
from engine.core.requests.request import Request
from engine.core.steps.policies import UnmaskPolicy
from engine.core.steps.scores import Needs, Samples, Scores

ANY, SAMPLE = 1, 2
"""Streams of numbers: for tokens of the whole vocabulary, and for those drawn from a distribution."""


@dataclass(frozen=True)
class Renoise(UnmaskPolicy):
    """Accepts tokens in ascending order of entropy, while the entropies before one sum to `entropy_bound` at most."""

    uniform: Callable[..., Any] = uniform
    """(seed, stream, block, step, places in the block) -> numbers in [0, 1); steps count from 1, 0 is the opening."""

    renews = True

    def fits(self, spec: ModelSpec) -> bool:
        return spec.mask_id is None

    def opening(self, request: Request) -> Ids:
        return self._any_tokens(request, 0)

    def needs(self, request: Request) -> Needs:
        diffusion, block = request.diffusion, request.block
        left = 1 - block.step / diffusion.max_denoising_steps
        temperature = diffusion.t_min + (diffusion.t_max - diffusion.t_min) * left
        return Needs(entropy=True, samples=Samples(temperature=temperature, uniform=partial(self._numbers, request)))

    def select(self, request: Request, scores: Scores) -> Mask:
        """All or none."""
        assert scores.entropy is not None
        diffusion, block = request.diffusion, request.block
        is_stable = block.repeats_with(scores.tokens) >= diffusion.stability_threshold
        is_done = is_stable and bool(scores.entropy.mean() < diffusion.confidence_threshold)
        return np.full(len(scores.positions), is_done or block.step + 1 >= diffusion.max_denoising_steps)

    def shown(self, request: Request, scores: Scores) -> Ids:
        assert scores.samples is not None
        return np.where(self._accepted(request, scores), scores.samples, self._any_tokens(request, _step(request)))

    def is_forced(self, request: Request, scores: Scores) -> bool:
        return False

    def _accepted(self, request: Request, scores: Scores) -> Mask:
        assert scores.entropy is not None
        order = np.argsort(scores.entropy, kind="stable")
        ascending = scores.entropy[order]
        accepted = np.zeros(len(order), np.bool_)
        accepted[order] = np.cumsum(ascending) - ascending <= request.diffusion.entropy_bound
        return accepted

    def _numbers(self, request: Request, positions: Ids) -> Any:
        """For drawing a token at each of these positions in this step."""
        block = request.block
        return self.uniform(request.sampling.seed, SAMPLE, block.index, _step(request), positions - block.start)

    def _any_tokens(self, request: Request, step: int) -> Ids:
        """[block]"""
        block, vocab = request.block, request.spec.vocab_size
        numbers = self.uniform(request.sampling.seed, ANY, block.index, step, np.arange(block.end - block.start))
        tokens: Ids = (numbers * vocab).astype(np.int64)
        return tokens


def _step(request: Request) -> int:
    return request.block.step + 1
