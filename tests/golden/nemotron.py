"""Rows of Nemotron-Labs-Diffusion's samplers and of vLLM's, through the loops in `causal_commit`."""

from collections.abc import Iterable, Iterator
from typing import Any

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.bench.causal_commit import (
    Decoded,
    decode_autoregressively,
    decode_by_speculation,
    decode_canvas,
    decode_diffusion,
)
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Made, Row
from tests.golden.through_engine import cut_at_stop


def takes(row: Row) -> bool:
    """Without `causal_context` its prompt sees itself in both directions: a model is not meant to be used so."""
    return row.get("causal_context", True)


def through_plain_loop(checkpoint: Checkpoint, rows: Iterable[Row]) -> Iterator[Made]:
    for row in rows:
        made = _decoded(checkpoint, row)
        yield {
            "output": made.tokens,
            "forwards": made.forwards,
            "steps": made.steps,
            "drafts": made.steps,
            "accepted": made.accepted,
        }


def _decoded(checkpoint: Checkpoint, row: Row) -> Decoded:
    asked: dict[str, Any] = {"gen_length": row["gen_length"], "mask_id": checkpoint.spec.mask_id, "eos_id": row["eos"]}
    given, mode = (checkpoint.model, row["prompt"]), row["mode"]
    if mode == "ar":
        return decode_autoregressively(*given, **asked)
    asked |= {"block_length": row["block_length"], "threshold": row["threshold"]}
    match mode:
        case "diffusion":
            return decode_diffusion(*given, **asked, causal_context=row["causal_context"])
        case "linear_spec":
            return decode_by_speculation(*given, **asked, is_adapted=row["adapter"])
        case _:
            return decode_canvas(*given, **asked, policy=row["policy"], max_steps=row["max_steps"])


def asked(row: Row, name: str) -> Submission:
    """Rows have an end of their own, or none."""
    sampling = SamplingParams(
        max_tokens=row["gen_length"],
        ignore_eos=True,
        stop_ids=frozenset() if row["eos"] is None else frozenset({row["eos"]}),
    )
    return Submission(
        request_id=name, prompt_ids=row["prompt"], sampling=sampling, diffusion=DiffusionParams(**_policy(row))
    )


def _policy(row: Row) -> dict[str, Any]:
    if row["mode"] == "ar":
        return {"block_length": 1}
    block = {"block_length": row["block_length"]}
    if row["threshold"] is None:
        return {**block, "unmask": "fixed"}
    threshold = {"threshold": row["threshold"]}
    match row["mode"]:
        case "diffusion":
            return {**block, "unmask": "threshold", **threshold}
        case "linear_spec":
            drafts = {"draft_threshold": row["threshold"], "draft_adapter": row["adapter"]}
            return {**block, "unmask": "linear_spec", **drafts}
        case _:
            policy = {"unmask": row["policy"], "denoising_steps": row["max_steps"], "causal_first": False}
            return {**block, **policy, **threshold}


def expected(row: Row, spec: ModelSpec) -> Made:
    """An answer ends before its first end, and with the last token asked for.

    A forward that commits a block says the next one's first token, or denoises the next one if nothing is said: so an
    answer's last block is not committed, and `canvas` has no forwards but those that denoise. Behind an end in the
    middle of a block, the published samplers may decode more.
    """
    cut = cut_at_stop(row, {row["eos"]})
    has_end = len(cut) < len(row["output"])
    match row["mode"]:
        case "diffusion":
            forwards = row["forwards"] - 1
        case "canvas":
            forwards = sum(row["steps"])
        case _:
            forwards = row["forwards"]
    is_exact = not has_end or row["mode"] in ("ar", "linear_spec")
    return {"output": cut[: row["gen_length"]], "forwards" if is_exact else "most_forwards": forwards}
