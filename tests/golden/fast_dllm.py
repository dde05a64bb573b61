"""Rows of Fast-dLLM v2's two samplers, through `block_causal.decode_fast_dllm`."""

from collections.abc import Iterable, Iterator

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.bench.block_causal import decode_fast_dllm
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Made, Row
from tests.golden.through_engine import cut_at_stop

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


def asked(row: Row, name: str) -> Submission:
    return Submission(
        request_id=name,
        prompt_ids=row["prompt"],
        sampling=SamplingParams(max_tokens=len(row["output"]), ignore_eos=True, stop_ids=frozenset(row["stop_ids"])),
        diffusion=DiffusionParams(
            unmask="threshold",
            cache="sub_block" if row["block_cache"] else "block",
            block_length=row["block_length"],
            sub_block_length=row["small_block"],
            threshold=row["threshold"],
        ),
    )


def expected(row: Row, spec: ModelSpec) -> Made:
    """Where a prompt ends with a block, its forward says the next token; other prompts are computed with that block.

    `batch_sample` finishes a block in which its answer has ended, which the engine does not.
    """
    forwards = row["forwards"]
    needed = sum(forwards[kind] for kind in ("block", "sub", "commit"))
    needed += forwards["prefill"] and len(row["prompt"]) % row["block_length"] == 0
    is_cut = row["sampler"] == "batch_sample" and row["finish"] == "stop"
    return {"output": cut_at_stop(row, row["stop_ids"])} | ({} if is_cut else {"forwards": needed})
