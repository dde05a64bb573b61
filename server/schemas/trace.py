"""The wire types of a watched answer: what each step did to its canvas."""

from pydantic import BaseModel

from engine import Range
from server.schemas.wire import IfGiven


class TraceCanvas(BaseModel):
    """The canvas before the first step."""

    end: int
    """Number of its positions, prompt included."""
    answer: list[Range]
    """Positions to fill."""
    output_end: int
    """One past the last position that may be part of the answer."""
    cached_tokens: int
    """Prompt tokens whose keys and values were there before."""
    prompt: list[str]
    """The prompt's tokens as texts, in the order of the positions that are not to fill."""


class TraceStep(BaseModel):
    """One step of one choice. Positions are of its canvas, ascending."""

    index: int
    """The choice's."""
    step: int
    """Counts the steps that the choice took part in, from 1."""
    block: Range
    """The open block."""
    rows: list[Range]
    """Positions that were computed. Those outside of the block were refreshed, or computed for the first time."""
    visible_end: int
    """One past the last position that was attended to."""
    positions: list[int]
    """Masks that became tokens."""
    token_ids: list[int]
    """These tokens."""
    tokens: list[str]
    """Their texts; bytes that are no whole character are spelled `bytes:\\xe2`."""
    confidences: list[float]
    """Of each, the probability that the unmask policy saw."""
    canvas: IfGiven[TraceCanvas] = None
    """In the first step of a choice."""
