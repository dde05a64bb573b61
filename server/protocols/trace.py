"""Writes the steps of a watched answer as the wire has them."""

from collections.abc import Sequence

from engine import Canvas, TracedStep
from server.schemas import TraceCanvas, TraceStep
from server.text.tokenizer import Tokenizer

PRECISION = 6
"""Decimals of a confidence."""


class TraceWriter:
    """Writes steps."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def written(self, index: int, traced: TracedStep, prompt_ids: Sequence[int]) -> TraceStep:
        """The step of the choice with this index and this prompt."""
        return TraceStep(
            index=index,
            step=traced.step,
            block=traced.block,
            rows=list(traced.rows),
            visible_end=traced.visible_end,
            positions=list(traced.positions),
            token_ids=list(traced.token_ids),
            tokens=list(map(self._tokenizer.spell, traced.token_ids)),
            confidences=[round(confidence, PRECISION) for confidence in traced.confidences],
            canvas=self._canvas(traced.canvas, prompt_ids) if traced.canvas else None,
        )

    def _canvas(self, canvas: Canvas, prompt_ids: Sequence[int]) -> TraceCanvas:
        return TraceCanvas(
            end=canvas.end,
            answer=list(canvas.answer),
            output_end=canvas.output_end,
            cached_tokens=canvas.cached_tokens,
            prompt=list(map(self._tokenizer.spell, prompt_ids)),
        )
