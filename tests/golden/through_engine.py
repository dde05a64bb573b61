"""Rows through the engine: one by one, and all in one batch that they join and leave at random steps.

Knows no family: a family says what to ask, and what must come of it.
"""

import random
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from engine import EngineConfig, Submission, load
from engine.engine import Engine
from tests.golden.rows import Made, Row

SEED = 20261126
"""Of the order in which a batch's rows come."""
AT_ONCE = 3
"""The most rows that come before one step."""


def engine_of(folder: Path, **settings: object) -> Engine:
    return load(EngineConfig(**{"model": str(folder), "device": "cpu", "dtype": "float32"} | settings))


def alone(engine: Engine, submissions: Sequence[Submission]) -> Iterator[Made]:
    for submission in submissions:
        yield from together(engine, [submission])


def together(engine: Engine, submissions: Sequence[Submission]) -> list[Made]:
    """What each row comes to, in their order."""
    rng = random.Random(SEED)
    pending = rng.sample(submissions, len(submissions))
    tokens: dict[str, list[int]] = {submission.request_id: [] for submission in submissions}
    forwards: dict[str, int] = {}
    while pending or engine.request_ids:
        for _ in range(min(rng.randint(0 if engine.request_ids else 1, AT_ONCE), len(pending))):
            engine.submit(engine.new_request(pending.pop()))
        for output in engine.step():
            tokens[output.request_id].extend(output.token_ids)
            forwards[output.request_id] = output.usage.forwards
    names = [submission.request_id for submission in submissions]
    return [{"output": tokens[name], "forwards": forwards[name]} for name in names]


def cut_at_stop(row: Row, stop_ids: Collection[int]) -> list[int]:
    """The row's output before its first stop token."""
    stops = [place for place, token in enumerate(row["output"]) if token in stop_ids]
    return row["output"][: stops[0]] if stops else row["output"]
