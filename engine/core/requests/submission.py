"""A request as it is handed to the engine. Token ids only, no text and no tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.core.config import ModelSpec
from engine.core.constraint import Constraint
from engine.core.params import DiffusionParams, SamplingParams, banned_everywhere


@dataclass(frozen=True, slots=True)
class Hole:
    """Masked positions within a prompt."""

    offset: int
    """Prompt tokens before it."""
    length: int
    """Positions to fill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One request as it is handed to the engine."""

    request_id: str
    prompt_ids: Sequence[int]
    sampling: SamplingParams
    diffusion: DiffusionParams
    holes: tuple[Hole, ...] = ()
    """Infilling: the canvas is the prompt with these holes in it, in ascending order, with tokens between them.

    Every hole is filled to its last position: no token ends the answer, and `sampling.max_tokens` is the sum of their
    lengths. No masks follow the prompt.
    """
    cache_salt: str = ""
    """Keys and values are only shared with requests of the same salt."""
    relay_as: str = ""
    """What later requests call the answer that this one is a choice of, to take over its keys and values; "" is no such
    answer."""
    relay_from: tuple[str, ...] = ()
    """Answers whose keys and values this prompt may take over where it repeats their canvases."""
    relay_end: int | None = None
    """Prompt tokens from here on are computed, whatever they repeat; None is all but the last ones."""
    is_traced: bool = False
    """A `TracedStep` is given out for each step."""
    tells_steps: bool = False
    """Outputs have `steps`."""
    overshoots: bool = False
    """The last block may begin at the answer's last token: what it holds behind that is no part of the answer."""


def effective_constraint(sampling: SamplingParams, spec: ModelSpec) -> Constraint | None:
    """The constraint where tokens that `allowed_ids` and `bad_words` rule out everywhere fit nowhere."""
    banned = banned_everywhere(sampling)
    if sampling.constraint is None or not (banned or sampling.allowed_ids is not None):
        return sampling.constraint
    is_allowed = np.full(spec.vocab_size, sampling.allowed_ids is None)
    is_allowed[list(sampling.allowed_ids or ())] = True
    is_allowed[list(banned)] = False
    return sampling.constraint.without(np.flatnonzero(~is_allowed))
