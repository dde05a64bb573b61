"""Prints for each file of golden folders how much of it is reproduced. Exits with 1 if anything differs."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from engine import LoadError
from tests.golden import (
    diffusion_gemma,
    dream,
    fast_dllm,
    llada,
    llada2,
    llada_moe,
    logits,
    nemotron,
    sdar,
    through_engine,
)
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Family, differences, read_rows

FAMILIES: Mapping[str, Family] = {
    "llada": llada,
    "Dream": dream,
    "sdar": sdar,
    "Fast_dLLM_Qwen": fast_dllm,
    "sdar_moe": sdar,
    "llada_moe": llada_moe,
    "llada2_moe": llada2,
    "nemotron_labs_diffusion": nemotron,
    "diffusion_gemma": diffusion_gemma,
}
"""Name of a family -> how its rows are decoded."""

DRAWS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {"diffusion_gemma": diffusion_gemma.golden_draws}
"""Name of a family whose rows define numbers for their draws -> a context in which the engine has these."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--device", default="cpu", help="of the engine; all else is computed on the CPU [default: cpu]")
    parser.add_argument(
        "--tensor-parallel-size", type=int, default=1, metavar="N", help="of the engine: processes [default: 1]"
    )
    parser.add_argument(
        "--settings",
        type=json.loads,
        default={},
        metavar="JSON",
        help="""other settings of the engine, such as '{"compile": true}'""",
    )
    torch.set_num_threads(1)
    given = parser.parse_args()
    settings = {"device": given.device, "tensor_parallel_size": given.tensor_parallel_size} | given.settings
    wrong = 0
    for folder in given.folders:
        print(folder)
        try:
            checkpoint = Checkpoint.load(folder)
        except LoadError as error:
            print(f"  {error}")
            wrong += 1
            continue
        for line in (*_logits(checkpoint), *_generations(checkpoint, settings)):
            print(f"    {line}")
            wrong += 1
    sys.exit(1 if wrong else 0)


def _logits(checkpoint: Checkpoint) -> Iterator[str]:
    """A line for each forward that is too far from the published one."""
    found = list(logits.distances(checkpoint))
    far = [f"forward {number}: {far:.1e}" for number, far in enumerate(found) if not far <= logits.LARGEST_DISTANCE]
    print(f"  logits.safetensors: {len(found) - len(far)} of {len(found)} rows, at most {max(found):.1e} apart")
    yield from far


def _generations(checkpoint: Checkpoint, settings: Mapping[str, object]) -> Iterator[str]:
    """A line for each row that came out otherwise."""
    family = FAMILIES[checkpoint.spec.family]
    draws = DRAWS.get(checkpoint.spec.family, nullcontext)
    paths = sorted(checkpoint.folder.glob("generations*.json"))
    if not paths:
        yield "no generations*.json"
    engine = through_engine.engine_of(checkpoint.folder, **settings)
    for path in paths:
        rows = read_rows(path)
        taken = [row for row in rows if family.takes(row)]
        requests = [(number, row) for number, row in enumerate(taken) if row["output"]]  # none asks for no token
        submissions = [family.asked(row, str(number)) for number, row in requests]
        wanted = [{"id": row.get("id", number), **family.expected(row, checkpoint.spec)} for number, row in requests]
        with draws():
            for way, right, made in (
                ("plain loop", taken, family.through_plain_loop(checkpoint, taken)),
                ("engine, one by one", wanted, through_engine.alone(engine, submissions)),
                ("engine, one batch", wanted, through_engine.together(engine, submissions)),
            ):
                differing = differences(right, made)
                left_out = f" ({len(rows) - len(right)} left out)" if len(right) < len(rows) else ""
                print(f"  {path.name}, {way}: {len(right) - len(differing)} of {len(right)} rows{left_out}", flush=True)
                yield from differing


if __name__ == "__main__":
    main()
