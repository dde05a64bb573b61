"""What is measured and predicted, by name: a loop of the papers, or this engine under a cache.

With the cache may come a lookahead, and a format of keys and values.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from engine.cache.policies import CACHES
from engine.core.config import KVDtype
from engine.core.errors import ConfigError

_CACHES = [name for name, policy in CACHES.items() if policy.attention == "full"]  # as the measured models attend
BASELINE, REFERENCE_DUAL = "reference/baseline", "reference/dual"
METHODS = (BASELINE, "reference/prefix", REFERENCE_DUAL, *(f"engine/{cache}" for cache in _CACHES))
"""`reference/` loops are dense and take the head over every row they compute; `engine/` is this engine, by cache.

Methods of the engine see the whole canvas, and store keys and values as the model computes them; `engine/dual+32` sees
32 positions behind the open block, `engine/dual:int8` and `engine/dual+32:int8` store codes (`EngineConfig.kv_dtype`).
"""

_ENGINE = re.compile(rf"engine/({'|'.join(_CACHES)})(?:\+(\d+))?(?::({'|'.join(get_args(KVDtype))}))?")


@dataclass(frozen=True, slots=True)
class Method:
    """One of `METHODS`, or one of the engine's with a lookahead or a format of keys and values."""

    where: Literal["reference", "engine"]
    cache: str
    lookahead: int | None = None
    """Positions seen behind the open block; None is all of the canvas."""
    kv_dtype: str = "auto"
    """As in `EngineConfig`."""
    is_baseline: bool = False
    """LLaDA's own loop: no cache, one token a step."""

    @classmethod
    def named(cls, name: str) -> "Method":
        """The method of this name. Raises ConfigError if there is none."""
        if found := _ENGINE.fullmatch(name):
            return cls("engine", found[1], int(found[2]) if found[2] else None, found[3] or "auto")
        if name not in METHODS:
            raise ConfigError(
                f"{name!r} is no method; methods are {', '.join(METHODS)}, with a lookahead engine/dual+32, and with "
                "another format of keys and values engine/dual:int8"
            )
        if name == BASELINE:
            return cls("reference", "none", is_baseline=True)
        return cls("reference", name.removeprefix("reference/"))
