"""CadLLM (arXiv 2512.07173): block length, steps, threshold and vocabulary follow the model's running confidence.

Everything is computed from the request's `History`; what has no parameter in the request is a constant of the
published code's threshold path.
"""

from collections.abc import Sequence

import numpy as np

from engine.core.arrays import Mask
from engine.core.config import ModelSpec
from engine.core.params import DiffusionParams
from engine.core.requests.request import Request
from engine.core.steps.policies import UnmaskPolicy
from engine.core.steps.scores import Needs, Scores

FIRST_THRESHOLD, LAST_THRESHOLD = 0.85, 0.4
"""The threshold falls from the first to the last over the steps of a block."""
MIN_VOCABULARY, INITIAL_VOCABULARY, MAX_VOCABULARY = 35, 100, 1000
"""Numbers of most probable tokens over which confidence is computed."""
WINDOW = 8
"""Number of last tokens in which a repetition is looked for."""


class Cad(UnmaskPolicy):
    """All targets whose confidence reaches a threshold that falls within the block, and always the best.

    A confident model gets long blocks, few steps to the lowest threshold, and a small vocabulary; a repetitive model
    gets a large vocabulary.
    """

    cuts_canvas = True
    reads_history = True

    def block_length(self, request: Request) -> int:
        params, confidence = request.diffusion, request.history.mean_confidence
        length = params.initial_block_length
        if confidence:
            spread = params.max_block_length - params.min_block_length
            length = params.min_block_length + int(spread * _mean(confidence[-2:]))
        return max(params.min_block_length, min(length, params.max_block_length))

    def longest_block(self, diffusion: DiffusionParams, spec: ModelSpec) -> int:
        return diffusion.max_block_length

    def needs(self, request: Request) -> Needs:
        vocabulary = min(_vocabulary(request), request.spec.vocab_size)
        return Needs(vocabulary=vocabulary, by_entropy=request.diffusion.confidence_method == "entropy")

    def select(self, request: Request, scores: Scores) -> Mask:
        chosen = scores.confidence >= _threshold(request)
        chosen[scores.log_odds.argmax()] = True
        return chosen

    def is_forced(self, request: Request, scores: Scores) -> bool:
        return bool((scores.confidence < _threshold(request)).all())


def _threshold(request: Request) -> float:
    progress = request.block.step / _steps(request)
    return max(FIRST_THRESHOLD * (1 - progress) + LAST_THRESHOLD * progress, LAST_THRESHOLD)


def _steps(request: Request) -> int:
    """Steps over which the open block's threshold falls, fixed when it opened."""
    params, block = request.diffusion, request.block
    before = request.history.mean_confidence[: request.decoding_steps - block.step]
    if not before:
        return params.initial_steps
    steps = params.initial_steps + int((params.max_steps - params.initial_steps) * (1 - _mean(before[-2:])))
    return max(int(steps * (block.end - block.start) / params.initial_block_length), 1)


def _vocabulary(request: Request) -> int:
    """How many of the most probable tokens this step looks at."""
    block, canvas = request.block, request.answer_end - request.answer_start
    confidence, repetition = request.history.mean_confidence, _repetition(request.history.tokens[-WINDOW:])
    progress = (block.start - request.answer_start) / canvas
    progress += block.step / _steps(request) * ((block.end - block.start) / canvas)
    size = MAX_VOCABULARY * 0.8 if progress < 0.2 else INITIAL_VOCABULARY * (0.7 if progress < 0.7 else 0.9)
    if confidence:
        recent = _mean(confidence[-5:])
        factor = 1.5 if recent < 0.3 else 1.2 if recent < 0.6 else 1.0 if recent <= 0.8 else 0.8
        is_falling = len(confidence) >= 3 and confidence[-1] - confidence[-3] < -0.1
        size *= factor * (1.3 if is_falling else 1.0)
    if repetition > 0.5:
        size *= 1 + 2 * repetition
    return int(np.clip(size, MIN_VOCABULARY, MAX_VOCABULARY))


def _repetition(tokens: Sequence[int]) -> float:
    """From 0 to 1: how much of the last `WINDOW` tokens, in the order of decoding, repeats the tokens before it."""
    if len(tokens) < WINDOW:
        return 0.0
    if len(set(tokens[-4:])) == 1:
        return 1.0
    lengths = range(2, WINDOW // 2 + 1)
    return max((n / WINDOW for n in lengths if tokens[-n:] == tokens[-2 * n : -n]), default=0.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
