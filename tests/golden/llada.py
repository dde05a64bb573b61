"""Rows of the Fast-dLLM samplers, through `reference.decode`."""

from collections.abc import Iterable, Iterator

from engine.bench.reference import Rule, decode, factor, fixed, threshold
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Made, Row


def takes(row: Row) -> bool:
    return True


def through_plain_loop(checkpoint: Checkpoint, rows: Iterable[Row]) -> Iterator[Made]:
    for row in rows:
        decoded = decode(
            checkpoint.model,
            row["prompt"],
            gen_length=row["gen_length"],
            block_length=row["block_length"],
            mask_id=checkpoint.spec.mask_id,
            cache=row["cache"],
            rule=_rule(row),
        )
        yield {"output": decoded.tokens, "nfe": decoded.forwards}


def _rule(row: Row) -> Rule:
    match row["unmask"]:
        case "threshold":
            return threshold(row["threshold"])
        case "factor":
            return factor(row["factor"])
    return fixed(row["block_length"], row["steps"] * row["block_length"] // row["gen_length"])
