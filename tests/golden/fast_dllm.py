"""Rows of Fast-dLLM v2's two samplers, through `block_causal.decode_fast_dllm`."""

from collections.abc import Iterable, Iterator

from engine.bench.block_causal import decode_fast_dllm
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Made, Row

_ASKED = ("max_new_tokens", "block_length", "small_block", "threshold", "block_cache", "sampler")


def takes(row: Row) -> bool:
    return True


def through_plain_loop(checkpoint: Checkpoint, rows: Iterable[Row]) -> Iterator[Made]:
    pad_id = checkpoint.pad_id
    for row in rows:
        decoded = decode_fast_dllm(
            checkpoint.model,
            row["prompt"],
            mask_id=checkpoint.spec.mask_id,
            stop_id=next(iter(row["stop_ids"]), None),
            pad_id=pad_id,
            **{key: row[key] for key in _ASKED},
        )
        yield {"output": decoded.tokens, "forwards": decoded.forwards}
