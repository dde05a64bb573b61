"""Rows of LLaDA2.0's sampler, through `block_causal.decode_llada2`."""

from collections.abc import Iterable, Iterator

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.bench.block_causal import decode_llada2
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Made, Row
from tests.golden.through_engine import cut_at_stop

_ASKED = ("gen_length", "block_length", "steps", "threshold", "minimal_topk", "eos_early_stop")


def takes(row: Row) -> bool:
    """Rows of LLaDA2.1's sampler replace tokens that were decoded."""
    return "editing_threshold" not in row


def through_plain_loop(checkpoint: Checkpoint, rows: Iterable[Row]) -> Iterator[Made]:
    for row in rows:
        asked = {key: row[key] for key in _ASKED}
        spec = checkpoint.spec
        decoded = decode_llada2(checkpoint.model, row["prompt"], mask_id=spec.mask_id, end_ids=spec.eos_ids, **asked)
        yield {"output": decoded.tokens, "nfe": decoded.forwards["denoise"], "block_nfe": decoded.denoise_per_block}


def asked(row: Row, name: str) -> Submission:
    return Submission(
        request_id=name,
        prompt_ids=row["prompt"],
        sampling=SamplingParams(max_tokens=row["gen_length"]),
        diffusion=DiffusionParams(
            unmask="low_confidence_dynamic",
            block_length=row["block_length"],
            denoising_steps=min(row["steps"], row["gen_length"] // row["minimal_topk"]),
            threshold=row["threshold"],
        ),
    )


def expected(row: Row, spec: ModelSpec) -> Made:
    """An answer ends before its first end, and with the last token asked for; the engine decodes nothing behind them.

    The published sampler goes on to the end of the block: always behind the last token, behind an end without early
    stop.
    """
    cut = cut_at_stop(row, spec.eos_ids)
    has_end = len(cut) < len(row["output"])
    fills_blocks = (len(row["prompt"]) + row["gen_length"]) % row["block_length"] == 0
    is_exact = row["eos_early_stop"] if has_end else fills_blocks
    return {"output": cut[: row["gen_length"]], "forwards" if is_exact else "most_forwards": row["nfe"]}
