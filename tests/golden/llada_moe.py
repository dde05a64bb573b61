"""Rows of three samplers of LLaDA-MoE, by `rule`: LLaDA's own, Fast-dLLM's threshold and dInfer's, without a cache."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from engine import DiffusionParams, ModelSpec, SamplingParams, Submission
from engine.bench.reference import DenseContext, best_token, most_confident
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Made, Row
from tests.golden.through_engine import cut_at_stop


def takes(row: Row) -> bool:
    """This project has no guidance by what the model says without the prompt."""
    return not row.get("cfg_scale")


@torch.inference_mode()
def through_plain_loop(checkpoint: Checkpoint, rows: Iterable[Row]) -> Iterator[Made]:
    for row in rows:
        ids, forwards = _decoded(checkpoint, row)
        yield {"output": ids[len(row["prompt"]) :].tolist(), "block_nfe": forwards, "nfe": sum(forwards)}


def _decoded(checkpoint: Checkpoint, row: Row) -> tuple[Tensor, list[int]]:
    """The canvas behind the last block that is decoded, and the forwards of each block."""
    spec, prompt, length = checkpoint.spec, len(row["prompt"]), row["block_length"]
    ids = torch.tensor([*row["prompt"], *[spec.mask_id] * row["gen_length"]])
    end_ids = torch.tensor(sorted(spec.eos_ids))

    def is_end(some: Tensor) -> Tensor:
        return torch.isin(some, end_ids)

    masked = torch.arange(len(ids)) >= prompt
    forwards: list[int] = []
    for start in range(prompt, len(ids), length):
        block = torch.arange(start, start + length)
        steps = row["steps"] * length // row["gen_length"] if row["rule"] == "llada" else length
        share, extra = divmod(int(masked[block].sum()), steps)
        done = 0
        while done < steps and (row["rule"] == "llada" or masked[block].any()):
            targets = block[masked[block]]
            confidence, tokens = best_token(_forward(checkpoint, ids)[targets].softmax(-1), spec.mask_id)
            accepted = _accepted(row, confidence, share + (done < extra))
            ids[targets[accepted]], masked[targets[accepted]] = tokens[accepted], False
            done += 1
            if row["rule"] == "fast" and row["early_stop"] and is_end(ids).any():
                first = int(is_end(ids).nonzero()[0])
                ids[first:], masked[first:] = ids[first].clone(), False
        forwards.append(done)
        ends = is_end(ids[block] if row["rule"] == "dinfer" else ids)
        if row.get("early_stop") and ends.any():
            ids[start + length :] = ids[block][is_end(ids[block])][0]
            break
    return ids, forwards


def _forward(checkpoint: Checkpoint, ids: Tensor) -> Tensor:
    """float64 logits [canvas, vocab]"""
    model = checkpoint.model
    return model.logits(model(ids, torch.arange(len(ids)), DenseContext(model, len(ids)))).double()


def _accepted(row: Row, confidence: Tensor, due: int) -> Tensor:
    """bool [targets]"""
    match row["rule"]:
        case "llada":
            return most_confident(confidence, due)
        case "fast":
            return (confidence >= row["threshold"]) | most_confident(confidence, 1)
    return confidence >= min(row["threshold"], float(confidence.max()) - 1e-5)


def asked(row: Row, name: str) -> Submission:
    diffusion = {"unmask": "threshold", "threshold": row.get("threshold")}
    if row["rule"] == "llada":
        diffusion = {"unmask": "fixed", "steps": row["steps"]}
    return Submission(
        request_id=name,
        prompt_ids=row["prompt"],
        sampling=SamplingParams(max_tokens=row["gen_length"], ignore_eos=not row.get("early_stop")),
        diffusion=DiffusionParams(cache="none", lookahead=None, block_length=row["block_length"], **diffusion),
    )


def expected(row: Row, spec: ModelSpec) -> Made:
    """LLaDA's own sampler has forwards that reveal nothing, where a block has more steps than tokens; no other has.

    With `early_stop` an answer ends before its first end, and nothing is decoded behind it.
    """
    forwards = sum(min(count, row["block_length"]) for count in row["block_nfe"])
    if not row.get("early_stop"):
        return {"output": row["output"], "forwards": forwards}
    cut = cut_at_stop(row, spec.eos_ids)
    is_whole = len(cut) == len(row["output"])
    return {"output": cut, "forwards" if is_whole else "most_forwards": forwards}
