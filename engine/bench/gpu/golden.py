"""Golden rows on the device: what the published samplers generated from a checkpoint, token for token in float32."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from engine.assemble import load
from engine.bench.gpu.report import Outcome, Verdict
from engine.core.config import EngineConfig
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.submission import Submission
from engine.engine import Engine
from engine.kernels.attention import attend_spans

ROWS = "generations.json"
"""In the checkpoint's folder: prompt, policies, and the tokens and forwards that came of them."""


AT_ONCE = 8
"""Requests of a batch whose block steps are small enough for CUDA graphs."""


def check(folder: Path, device: str) -> Outcome:
    """All rows in one running batch. Raises LoadError if the folder cannot be served, OSError without rows."""
    rows = json.loads((folder / ROWS).read_text())
    engine = load(EngineConfig(model=str(folder), device=device, dtype="float32"))
    return judge(folder.name, rows, decode(engine, rows))


def check_graphs(folder: Path, device: str) -> Outcome:
    """The same a few at a time, so that CUDA graphs take their steps."""
    rows = json.loads((folder / ROWS).read_text())
    config = EngineConfig(model=str(folder), device=device, dtype="float32", max_running_requests=AT_ONCE)
    engine = load(config)
    if engine.runner.kernel is attend_spans:
        return Outcome(Verdict.LEFT_OUT, "only attention by Triton is captured", {})
    if engine.runner.graphs is None:
        return Outcome(Verdict.FAILED, "cannot be captured, or replay something else; the log has more", {})
    return judge(folder.name, rows, decode(engine, rows))


def judge(name: str, rows: list[dict[str, Any]], decoded: list[list[int]]) -> Outcome:
    """Whether each row has become what it should."""
    wrong = [number for number, row in enumerate(rows) if decoded[number] != row["output"]]
    said = f"{len(rows) - len(wrong)} of {len(rows)} rows of {name} token for token"
    if wrong:
        said += f"; the first that differs is row {wrong[0]}"
    verdict = Verdict.FAILED if wrong or not rows else Verdict.OK
    return Outcome(verdict, said, {"rows": len(rows), "differ": wrong})


def decode(engine: Engine, rows: list[dict[str, Any]]) -> list[list[int]]:
    """The tokens of each row."""
    tokens: list[list[int]] = [[] for _ in rows]
    for number, row in enumerate(rows):
        engine.submit(engine.new_request(_submission(str(number), row)))
    while engine.request_ids:
        for output in engine.step():
            tokens[int(output.request_id)].extend(output.token_ids)
    return tokens


def _submission(request_id: str, row: dict[str, Any]) -> Submission:
    """The published samplers see all of the canvas."""
    names = {field.name for field in fields(DiffusionParams)}
    return Submission(
        request_id=request_id,
        prompt_ids=row["prompt"],
        sampling=SamplingParams(max_tokens=row["gen_length"]),
        diffusion=DiffusionParams(lookahead=None, **{name: row[name] for name in names & row.keys()}),
    )
