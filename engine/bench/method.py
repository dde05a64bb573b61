"""What is measured and predicted, by name: a loop of the papers, or this engine under a cache and a lookahead."""

import re
from dataclasses import dataclass
from typing import Literal

from engine.cache.policies import CACHES
from engine.core.errors import ConfigError

_CACHES = [name for name, policy in CACHES.items() if policy.attention == "full"]  # as the measured models attend
BASELINE, REFERENCE_DUAL = "reference/baseline", "reference/dual"
METHODS = (BASELINE, "reference/prefix", REFERENCE_DUAL, *(f"engine/{cache}" for cache in _CACHES))
"""`reference/` loops are dense and take the head over every row they compute; `engine/` is this engine, by cache.

Methods of the engine see the whole canvas; `engine/dual+32` sees 32 positions behind the open block.
"""

_ENGINE = re.compile(rf"engine/({'|'.join(_CACHES)})\+(\d+)")


@dataclass(frozen=True, slots=True)
class Method:
    """One of `METHODS`, or one of the engine's with a lookahead."""

    where: Literal["reference", "engine"]
    cache: str
    lookahead: int | None = None
    """Positions seen behind the open block; None is all of the canvas."""
    is_baseline: bool = False
    """LLaDA's own loop: no cache, one token a step."""

    @classmethod
    def named(cls, name: str) -> "Method":
        """The method of this name. Raises ConfigError if there is none."""
        if found := _ENGINE.fullmatch(name):
            return cls("engine", found[1], int(found[2]))
        if name not in METHODS:
            raise ConfigError(
                f"{name!r} is no method; methods are {', '.join(METHODS)}, and with a lookahead engine/dual+32"
            )
        if name == BASELINE:
            return cls("reference", "none", is_baseline=True)
        where, _, cache = name.partition("/")
        return cls("reference" if where == "reference" else "engine", cache)
