"""Rows of the samplers of LLaDA2.0; with `editing_threshold`, LLaDA2.1; with `edit_threshold`, LLaDA2.2.

Through their loops in `block_causal` and `insert_delete`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.bench.block_causal import Decoded, decode_llada2, decode_llada2_editing
from engine.bench.insert_delete import Rule, decode_inserting_and_deleting
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Made, Row
from tests.golden.through_engine import cut_at_stop

_ASKED = ("gen_length", "block_length", "threshold", "eos_early_stop")
_ASKED_OF_2_0, _ASKED_OF_2_1 = ("steps", "minimal_topk"), ("editing_threshold", "max_post_steps", "num_to_transfer")


def takes(row: Row) -> bool:
    return True


def through_plain_loop(checkpoint: Checkpoint, rows: Iterable[Row]) -> Iterator[Made]:
    for row in rows:
        if _is_of_2_2(row):
            decoded = _inserting_and_deleting(checkpoint, row)
            yield {"output": decoded.tokens, "nfe": decoded.forwards["denoise"], "block_nfe": decoded.denoise_per_block}
            continue
        decode, keys = (decode_llada2_editing, _ASKED_OF_2_1) if _is_of_2_1(row) else (decode_llada2, _ASKED_OF_2_0)
        asked, spec = {key: row[key] for key in (*_ASKED, *keys)}, checkpoint.spec
        decoded = decode(checkpoint.model, row["prompt"], mask_id=spec.mask_id, end_ids=spec.eos_ids, **asked)
        yield {"output": decoded.tokens, "nfe": decoded.forwards["denoise"], "block_nfe": decoded.denoise_per_block}


def _inserting_and_deleting(checkpoint: Checkpoint, row: Row) -> Decoded:
    spec = checkpoint.spec
    rule = Rule(
        threshold=row["threshold"],
        editing_threshold=row["edit_threshold"],
        max_post_steps=row["max_post_edit_steps"],
        mask_id=spec.mask_id,
        delete_id=spec.delete_id,
        split_id=spec.split_id,
    )
    lengths = {key: row[key] for key in ("gen_length", "block_length")}
    return decode_inserting_and_deleting(checkpoint.model, row["prompt"], rule=rule, end_ids=spec.eos_ids, **lengths)


def _is_of_2_1(row: Row) -> bool:
    return "editing_threshold" in row


def _is_of_2_2(row: Row) -> bool:
    return "edit_threshold" in row


def asked(row: Row, name: str) -> Submission:
    return Submission(
        request_id=name,
        prompt_ids=row["prompt"],
        sampling=SamplingParams(max_tokens=row["gen_length"]),
        diffusion=DiffusionParams(block_length=row["block_length"], threshold=row["threshold"], **_policy(row)),
    )


def _policy(row: Row) -> dict[str, Any]:
    if _is_of_2_2(row):
        names = {"editing_threshold": "edit_threshold", "max_post_steps": "max_post_edit_steps"}
        return {"unmask": "insert_delete", **{ours: row[theirs] for ours, theirs in names.items()}}
    if _is_of_2_1(row):
        return {"unmask": "edit", **{key: row[key] for key in _ASKED_OF_2_1}}
    steps = min(row["steps"], row["gen_length"] // row["minimal_topk"])
    return {"unmask": "low_confidence_dynamic", "denoising_steps": steps}


def expected(row: Row, spec: ModelSpec) -> Made:
    """An answer ends before its first end, and with the last token asked for; the engine decodes nothing behind them.

    The published sampler of 2.0 goes on to the end of the block: always behind the last token, behind an end without
    early stop. That of 2.1 does, and so does the engine: what stands there may still change what stands before it. That
    of 2.2 counts a forward over a block that its last one changed; the engine computes it with the next block.
    """
    cut = cut_at_stop(row, spec.eos_ids)
    if _is_of_2_2(row):
        return {"output": cut, "most_forwards": row["nfe"]}
    has_end = len(cut) < len(row["output"])
    fills_blocks = _is_of_2_1(row) or (len(row["prompt"]) + row["gen_length"]) % row["block_length"] == 0
    is_exact = row["eos_early_stop"] if has_end else fills_blocks
    return {"output": cut[: row["gen_length"]], "forwards" if is_exact else "most_forwards": row["nfe"]}
