"""One answer as it arrives: its text, the canvas that it is decoded on, and what it has cost. Draws itself.

Knows chunks and steps as JSON, but not how they arrive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.style import Style
from rich.text import Text

from server.remote import plain

MASK = "·"
"""A position that is not decoded yet."""
SURE, UNSURE = (80, 200, 120), (230, 120, 60)
"""Colours (red, green, blue) of a token with a confidence of 1, and of 0."""
MAX_MASKS = 64
"""Masks that are drawn behind the last token: an answer may have room for thousands."""


@dataclass(slots=True)
class Answer:
    """What one request has been answered so far."""

    title: str = ""
    text: str = ""
    """From chunks: it is final."""
    finish_reason: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    """Why there is no more of it."""
    num_steps: int = 0
    _positions: range = range(0)
    """Of the answer, on the canvas."""
    _cells: dict[int, tuple[str, float]] = field(default_factory=dict)
    """By position: a token and its confidence."""
    _latest: frozenset[int] = frozenset()
    """Positions that the last step decoded."""

    def read(self, chunk: Mapping[str, Any]) -> None:
        """Takes in a chunk of the stream: of the answer's text, of its usage, or a step."""
        self.usage = chunk.get("usage") or self.usage
        if step := chunk.get("trace"):
            self._step(step)
        for choice in chunk.get("choices", ()):
            self.text += plain((choice.get("delta") or {}).get("content") or "")
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    @property
    def cost(self) -> str:
        """The usage in a line; empty without any."""
        if not self.usage:
            return ""
        parts = [f"{self.usage.get('completion_tokens', 0)} tokens"]
        if told := self.usage.get("diffusion"):
            parts.append(f"{told['forwards']} forwards, {told['tokens_per_forward']:.1f} tokens each")
            parts.append(f"{told['rows_computed']} rows")
            parts.append(f"cache {told['cache']}, unmask {told['unmask']}")
        if self.finish_reason == "length":
            parts.append("cut at max_tokens")
        return plain(" · ".join(parts))

    def __rich__(self) -> Text:
        """The canvas while steps are told, else the text."""
        drawn = self._canvas() if self._cells and self.finish_reason is None else Text(self.text)
        if self.error:
            drawn.append(f"\n{self.error}" if drawn else self.error, style="red")
        return drawn

    def _step(self, step: Mapping[str, Any]) -> None:
        self.num_steps = step["step"]
        if canvas := step.get("canvas"):
            ranges = canvas["answer"]
            self._positions = range(ranges[0][0], canvas["output_end"])
        tokens = zip(step["positions"], step["tokens"], step["confidences"], strict=True)
        self._cells.update({position: (plain(token), confidence) for position, token, confidence in tokens})
        self._latest = frozenset(step["positions"])

    def _canvas(self) -> Text:
        drawn = Text()
        end = min(max(self._cells, default=self._positions.start) + 1 + MAX_MASKS, self._positions.stop)
        for position in range(self._positions.start, end):
            cell = self._cells.get(position)
            if cell is None:
                drawn.append(MASK, style="dim")
            else:
                drawn.append(cell[0], style=_style(cell[1], is_new=position in self._latest))
        return drawn


def _style(confidence: float, *, is_new: bool) -> Style:
    mixed = [round(low + (high - low) * confidence) for low, high in zip(UNSURE, SURE, strict=True)]
    return Style(color=f"rgb({mixed[0]},{mixed[1]},{mixed[2]})", bold=is_new, reverse=is_new)
