"""Rows of SDAR's sampler, through `block_causal.decode_sdar`."""

from collections.abc import Iterable, Iterator

from engine.bench.block_causal import decode_sdar
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Made, Row

UNDISTORTED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""Other rows score a token by what temperature and filters leave of its probability; this project scores it by the
model's own."""
_ASKED = ("gen_length", "block_length", "steps", "strategy", "threshold", "eb_threshold", "stop_ids")


def takes(row: Row) -> bool:
    return all(row[key] == value for key, value in UNDISTORTED.items())


def through_plain_loop(checkpoint: Checkpoint, rows: Iterable[Row]) -> Iterator[Made]:
    for row in rows:
        asked = {key: row[key] for key in _ASKED if row[key] is not None}
        decoded = decode_sdar(checkpoint.model, row["prompt"], mask_id=checkpoint.spec.mask_id, **asked)
        yield {
            "output": decoded.tokens,
            "forwards": decoded.forwards,
            "denoise_per_block": decoded.denoise_per_block,
        }
