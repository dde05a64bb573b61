"""What one step did to one request, for those who watch it. Costs nothing where nobody does."""

import numpy as np

from engine.core.arrays import Ids
from engine.core.output import Canvas, Range, TracedStep
from engine.core.steps.choice import Choice


def traced(choice: Choice) -> TracedStep:
    """The step that has just been written into the choice's request."""
    plan, scores, chosen, *_ = choice
    request, block = plan.request, plan.request.block
    if choice.rewritten is not None:
        chosen = chosen | choice.rewritten.moved
    chosen = chosen & (not plan.is_draft)  # what a draft holds may be dropped, and nothing that is told is taken back
    return TracedStep(
        request_id=request.id,
        step=request.forwards,
        block=(block.start, block.end),
        rows=ranges(plan.rows),
        visible_end=block.visible_end,
        positions=tuple(plan.targets[chosen].tolist()),
        token_ids=tuple(scores.tokens[chosen].tolist()),
        confidences=tuple(scores.confidence[chosen].tolist()),
        canvas=Canvas(
            end=request.canvas_end,
            answer=ranges(request.answer_positions),
            output_end=request.output_end,
            cached_tokens=request.cached_tokens,
        )
        if request.forwards == 1
        else None,
    )


def ranges(positions: Ids) -> tuple[Range, ...]:
    """Ascending positions as ranges, each [first, one past the last)."""
    if not len(positions):
        return ()
    breaks = np.flatnonzero(np.diff(positions) != 1)
    firsts = positions[np.append(0, breaks + 1)].tolist()
    ends = (positions[np.append(breaks, len(positions) - 1)] + 1).tolist()
    return tuple(zip(firsts, ends, strict=True))
