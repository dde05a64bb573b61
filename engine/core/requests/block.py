"""The open block: a span of the canvas, and what its steps have done so far."""

from dataclasses import dataclass

import numpy as np

from engine.core.arrays import Floats, Ids, Mask


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockEdits:
    """What a policy that moves tokens keeps from step to step of a block, whose targets are always the same places."""

    first: Mask
    """bool [targets] places that were masked when the block opened; they move with their tokens."""
    log_odds: Floats
    """[targets] of their tokens, of the step that wrote each."""
    written: tuple[frozenset[int], ...]
    """[targets] all tokens that any step has written there, whatever has become of them."""
    seen: frozenset[bytes] = frozenset()
    """Contents of the block before each step so far."""
    post_steps: int = 0
    """Steps that began without a mask among the `first` places."""


@dataclass(slots=True)
class Block:
    """The span [start, end) of the canvas that is being decoded; tokens of the prompt may stand in it."""

    index: int
    """How many blocks were opened before; a span without masked positions is not opened."""
    start: int
    end: int
    num_masked: int
    """Masked positions when the block was opened."""
    fresh: int
    """From here to `visible_end`, positions have no keys and values when the block opens."""
    visible_end: int
    """One past the last position that is computed or attended to while the block is open."""
    step: int = 0
    """Denoising steps done in it."""
    is_computed: bool = False
    """Whether all its positions have had keys and values since it was opened."""
    replaces_tokens: bool = False
    """Whether its decoded tokens may be replaced while it is open."""
    post_steps: int = 0
    """Where tokens are replaced: denoising steps that began without a mask in it."""
    is_settled: bool = False
    """Where tokens are replaced: whether the last of them replaced nothing, or, where they move, none may follow. Of a
    draft: whether it is verified."""
    edits: BlockEdits | None = None
    """Where tokens move: what its steps have done, once there was one."""
    is_drafted: bool = False
    """Whether its tokens are a draft until causal rows have said the same.

    Rows are then one position ahead: the last token before the block is denoised with it, and its own last position is
    not drafted, since only the row before that says it.
    """
    proposed: Ids | None = None
    """Where the block is renewed: what the last step proposed."""
    repeats: int = 0
    """Where the block is renewed: steps before the last one, without a gap, that proposed the same."""

    @property
    def rows_start(self) -> int:
        """The first row that sees all of the block; those before it have final keys and values, once computed."""
        return max(self.start - self.is_drafted, 0)

    @property
    def rows_end(self) -> int:
        """One past the last row that is denoised."""
        return self.end - self.is_drafted

    def repeats_with(self, proposed: Ids) -> int:
        """`repeats` once a step has proposed these."""
        return self.repeats + 1 if self.proposed is not None and np.array_equal(self.proposed, proposed) else 0

    @classmethod
    def opened(cls, masked: Mask, start: int, end: int, *, index: int, fresh: int, lookahead: int | None) -> "Block":
        """The span of a canvas with these masks, of which everything before `fresh` has keys and values.

        `lookahead` positions behind the span are visible, or the whole canvas if it is None. Known tokens are always
        visible, also those behind holes.
        """
        visible_end = len(masked)
        if lookahead is not None:
            known = len(masked) - int(np.argmin(masked[::-1]))
            visible_end = max(known, min(end + lookahead, len(masked)))
        return cls(index, start, end, int(masked[start:end].sum()), fresh, visible_end)
