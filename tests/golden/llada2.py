"""Rows of the samplers of LLaDA2.0 and, with `editing_threshold`, LLaDA2.1, through their loops in `block_causal`."""

from collections.abc import Iterable, Iterator
from typing import Any

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.bench.block_causal import decode_llada2, decode_llada2_editing
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Made, Row
from tests.golden.through_engine import cut_at_stop

_ASKED = ("gen_length", "block_length", "threshold", "eos_early_stop")
_ASKED_OF_2_0, _ASKED_OF_2_1 = ("steps", "minimal_topk"), ("editing_threshold", "max_post_steps", "num_to_transfer")


def takes(row: Row) -> bool:
    return True


def through_plain_loop(checkpoint: Checkpoint, rows: Iterable[Row]) -> Iterator[Made]:
    for row in rows:
        decode, keys = (decode_llada2_editing, _ASKED_OF_2_1) if _is_of_2_1(row) else (decode_llada2, _ASKED_OF_2_0)
        asked, spec = {key: row[key] for key in (*_ASKED, *keys)}, checkpoint.spec
        decoded = decode(checkpoint.model, row["prompt"], mask_id=spec.mask_id, end_ids=spec.eos_ids, **asked)
        yield {"output": decoded.tokens, "nfe": decoded.forwards["denoise"], "block_nfe": decoded.denoise_per_block}


def _is_of_2_1(row: Row) -> bool:
    return "editing_threshold" in row


def asked(row: Row, name: str) -> Submission:
    return Submission(
        request_id=name,
        prompt_ids=row["prompt"],
        sampling=SamplingParams(max_tokens=row["gen_length"]),
        diffusion=DiffusionParams(block_length=row["block_length"], threshold=row["threshold"], **_policy(row)),
    )


def _policy(row: Row) -> dict[str, Any]:
    if _is_of_2_1(row):
        return {"unmask": "edit", **{key: row[key] for key in _ASKED_OF_2_1}}
    steps = min(row["steps"], row["gen_length"] // row["minimal_topk"])
    return {"unmask": "low_confidence_dynamic", "denoising_steps": steps}


def expected(row: Row, spec: ModelSpec) -> Made:
    """An answer ends before its first end, and with the last token asked for; the engine decodes nothing behind them.

    The published sampler of 2.0 goes on to the end of the block: always behind the last token, behind an end without
    early stop. That of 2.1 does, and so does the engine: what stands there may still change what stands before it.
    """
    cut = cut_at_stop(row, spec.eos_ids)
    has_end = len(cut) < len(row["output"])
    fills_blocks = _is_of_2_1(row) or (len(row["prompt"]) + row["gen_length"]) % row["block_length"] == 0
    is_exact = row["eos_early_stop"] if has_end else fills_blocks
    return {"output": cut[: row["gen_length"]], "forwards" if is_exact else "most_forwards": row["nfe"]}
