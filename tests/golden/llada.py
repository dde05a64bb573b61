"""Rows of the Fast-dLLM samplers, through `reference.decode`."""

from collections.abc import Iterable, Iterator

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.bench.reference import Rule, decode, factor, fixed, threshold
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Made, Row

_ASKED = ("cache", "unmask", "block_length", "steps", "threshold", "factor")


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


def asked(row: Row, name: str) -> Submission:
    return Submission(
        request_id=name,
        prompt_ids=row["prompt"],
        sampling=SamplingParams(max_tokens=row["gen_length"], ignore_eos=True),
        diffusion=DiffusionParams(lookahead=None, **{key: row[key] for key in _ASKED if key in row}),
    )


def expected(row: Row, spec: ModelSpec) -> Made:
    return {"output": row["output"], "forwards": row["nfe"]}


def _rule(row: Row) -> Rule:
    match row["unmask"]:
        case "threshold":
            return threshold(row["threshold"])
        case "factor":
            return factor(row["factor"])
    return fixed(row["block_length"], row["steps"] * row["block_length"] // row["gen_length"])
