"""A watched answer as a film: which token stands where in the picture, and in which step it appears.

Knows answers as JSON and places in a picture, but neither SVG nor pixels.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

WIDTH = 64
"""Characters of a line."""
STEP_SECONDS, HOLD_SECONDS = 0.45, 3.0
"""A step's time on the screen, and that of the whole answer before the film begins anew."""
PLACEHOLDER = "□"
"""Stands for what cannot be drawn."""
_BYTES = re.compile(r"bytes:(\\x[0-9a-f]{2})+")
"""Texts of tokens that are no whole characters."""
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not allow, not even escaped."""


class NoTrace(Exception):
    """The answer tells no steps."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A token of the answer."""

    text: str
    """Without line breaks; at least one character wide."""
    line: int
    column: int
    """Characters to its left."""
    step: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Film:
    """One choice of an answer."""

    cells: tuple[Cell, ...]
    num_steps: int
    num_lines: int
    caption: str


def film_of(answer: Mapping[str, Any], index: int = 0) -> Film:
    """The film of the choice with this index. Raises NoTrace."""
    steps = [step for step in answer.get("trace") or () if step["index"] == index]
    if not steps or "canvas" not in steps[0]:
        raise NoTrace(f"it has no steps of choice {index}: ask with `diffusion.trace`, and without `stream`")
    [shown] = [choice["shown"] for choice in answer["choices"] if choice["index"] == index]
    decoded = {
        position: (token, step["step"], confidence)
        for step in steps
        for position, token, confidence in zip(step["positions"], step["tokens"], step["confidences"], strict=True)
    }
    tokens = [decoded[at] for at in sorted(decoded) if any(start <= at < end for start, end in shown)]
    cells = tuple(_placed(tokens))
    told = answer["usage"]["diffusion"]
    caption = f"{len(tokens)} tokens in {len(steps)} steps · {told['cache']}, {told['unmask']}"
    return Film(cells, len(steps), 1 + max((cell.line for cell in cells), default=0), _drawable(caption))


def _drawable(text: str) -> str:
    return _NOT_XML.sub(PLACEHOLDER, text)


def _placed(tokens: list[tuple[str, int, float]]) -> Iterator[Cell]:
    """Wraps lines at `WIDTH`, and where a token ends one."""
    line = column = 0
    for token, step, confidence in tokens:
        text, *others = (PLACEHOLDER if _BYTES.fullmatch(token) else _drawable(token)).split("\n")
        for number, part in enumerate([text, *others]):
            if number:
                line, column = line + 1, 0
            if column and column + len(part) > WIDTH:
                line, column, part = line + 1, 0, part.lstrip()
            if part or not others:
                yield Cell(part or " ", line, column, step, confidence)
            column += len(part)
