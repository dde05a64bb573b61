"""Rows of Dream's own sampler, through `reference.decode_as_dream`."""

from collections.abc import Iterable, Iterator

from engine.bench.reference import decode_as_dream
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Made, Row

_ASKED = ("gen_length", "steps", "alg", "eps", "top_p", "top_k")


def takes(row: Row) -> bool:
    return True


def through_plain_loop(checkpoint: Checkpoint, rows: Iterable[Row]) -> Iterator[Made]:
    for row in rows:
        asked = {key: row[key] for key in _ASKED if key in row}
        decoded = decode_as_dream(checkpoint.model, row["prompt"], mask_id=checkpoint.spec.mask_id, **asked)
        yield {"output": decoded.tokens}
