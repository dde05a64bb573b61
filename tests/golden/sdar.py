"""Rows of SDAR's sampler, through `block_causal.decode_sdar`."""

from collections.abc import Iterable, Iterator

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
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


def asked(row: Row, name: str) -> Submission:
    """As far as the row goes, stop tokens or not: the published sampler looks for them behind a whole block."""
    given = {"threshold": row["threshold"], "gamma": row["eb_threshold"]}
    return Submission(
        request_id=name,
        prompt_ids=row["prompt"],
        sampling=SamplingParams(max_tokens=len(row["output"]), ignore_eos=True),
        diffusion=DiffusionParams(
            unmask=row["strategy"],
            block_length=row["block_length"],
            denoising_steps=row["steps"],
            **{key: value for key, value in given.items() if value is not None},
        ),
    )


def expected(row: Row, spec: ModelSpec) -> Made:
    """The prompt and each finished block are computed in a forward that denoises: no other is needed."""
    return {"output": row["output"], "forwards": row["forwards"]["denoise"]}
