"""Rows of Dream's own sampler, through `reference.decode_as_dream`."""

from collections.abc import Iterable, Iterator

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
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


def asked(row: Row, name: str) -> Submission:
    sampling = {key: row[key] for key in ("top_p", "top_k") if key in row}
    diffusion = {key: row[key] for key in ("steps", "alg", "eps") if key in row}
    return Submission(
        request_id=name,
        prompt_ids=row["prompt"],
        sampling=SamplingParams(max_tokens=row["gen_length"], ignore_eos=True, **sampling),
        diffusion=DiffusionParams(cache="none", unmask="dream", **diffusion),
    )


def expected(row: Row, spec: ModelSpec) -> Made:
    return {"output": row["output"]}
