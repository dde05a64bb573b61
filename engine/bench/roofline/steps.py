"""The steps of one request under one method, with rows as `engine.cache` plans them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.bench.method import Method
from engine.bench.timed_run import Workload
from engine.core.params import DiffusionParams

Kind = Literal["refresh", "step"]

DEFAULTS = DiffusionParams()


@dataclass(frozen=True, slots=True)
class Step:
    """What one request asks of one forward."""

    kind: Kind
    """`refresh` opens a block. Without cheaper steps within a block, every step is a `refresh`."""
    rows: int
    scored: int
    """Rows that the output head computes."""
    visible: int
    """Positions that each row attends to."""
    watched: bool = False
    """Whether attention weights are written and read once more (d2)."""
    kv_dtype: str = "auto"
    """As in `EngineConfig`: how keys and values are stored."""


def steps(name: str, workload: Workload) -> Iterator[Step]:
    """Every step of one request. Raises ConfigError if no method has this name."""
    method = Method.named(name)
    cache, pace = method.cache, 1 if method.is_baseline else workload.tokens_per_step
    fresh = 0
    for start in range(workload.prompt, workload.length, workload.block):
        end, visible = start + workload.block, workload.length
        if method.lookahead is not None:
            visible = min(end + method.lookahead, visible)
        for done in range(0, workload.block, pace):
            kind: Kind = "step" if done and cache in ("prefix", "dual", "window", "delayed") else "refresh"
            if cache == "d2":
                kind = "step" if done or start > workload.prompt else "refresh"
            rows = _rows(cache, kind, start, done, visible, workload)
            if start > workload.prompt and not done and cache in ("window", "delayed", "d2"):
                rows += _beyond(cache, end, fresh, visible)
            scored = rows if method.where == "reference" else workload.block - done
            if cache == "d2":
                masked = visible - start - done
                scored = masked if kind == "refresh" else min(DEFAULTS.current_k, masked)
            yield Step(kind, rows, scored, visible, watched=cache == "d2", kv_dtype=method.kv_dtype)
        fresh = visible


def _rows(cache: str, kind: Kind, start: int, done: int, visible: int, workload: Workload) -> int:
    """Rows of a step in the block at `start`, without those that become visible with the block."""
    match cache, kind:
        case "prefix", "step":
            return visible - start
        case (("dual" | "window"), "step"):
            return workload.block
        case "delayed", "step":
            return workload.block - done + workload.tokens_per_step
        case (("window" | "delayed"), "refresh") if start > workload.prompt:
            end = min(start + workload.block + DEFAULTS.refresh_after, visible)
            return end - max(start - DEFAULTS.refresh_before, 0)
        case "d2", "step":
            return _d2_rows(visible, workload)
    return visible


def _beyond(cache: str, block_end: int, fresh: int, visible: int) -> int:
    """Positions that become visible with a block and are not computed for another reason."""
    reached = block_end + DEFAULTS.refresh_after if cache in ("window", "delayed") else fresh
    return max(visible - max(fresh, reached), 0)


def _d2_rows(visible: int, workload: Workload) -> int:
    """Rows of d2 depend on the model's output. Here attention reaches all positions alike, which gives the most rows.

    They are the best ranked, those that the last step decoded, and the share `rollout_p` of the rest.
    """
    first = min(DEFAULTS.current_k + workload.tokens_per_step, visible)
    return first + round(DEFAULTS.rollout_p * (visible - first))
