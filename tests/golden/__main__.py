"""Prints for each file of golden folders how much of it is reproduced. Exits with 1 if anything differs."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from engine import LoadError
from tests.golden import dream, fast_dllm, llada, logits, sdar
from tests.golden.checkpoint import Checkpoint
from tests.golden.rows import Family, differences, read_rows

FAMILIES: Mapping[str, Family] = {"llada": llada, "Dream": dream, "sdar": sdar, "Fast_dLLM_Qwen": fast_dllm}
"""`model_type` of `config.json` -> how its rows are decoded."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    torch.set_num_threads(1)
    wrong = 0
    for folder in parser.parse_args().folders:
        print(folder)
        try:
            checkpoint = Checkpoint.load(folder)
        except LoadError as error:
            print(f"  {error}")
            wrong += 1
            continue
        for line in (*_logits(checkpoint), *_generations(checkpoint)):
            print(f"    {line}")
            wrong += 1
    sys.exit(1 if wrong else 0)


def _logits(checkpoint: Checkpoint) -> Iterator[str]:
    """A line for each forward that is too far from the published one."""
    found = list(logits.distances(checkpoint))
    far = [f"forward {number}: {far:.1e}" for number, far in enumerate(found) if not far <= logits.LARGEST_DISTANCE]
    print(f"  logits.safetensors: {len(found) - len(far)} of {len(found)} rows, at most {max(found):.1e} apart")
    yield from far


def _generations(checkpoint: Checkpoint) -> Iterator[str]:
    """A line for each row that came out otherwise."""
    family = FAMILIES[checkpoint.spec.family]
    paths = sorted(checkpoint.folder.glob("generations*.json"))
    if not paths:
        yield "no generations*.json"
    for path in paths:
        rows = read_rows(path)
        taken = [row for row in rows if family.takes(row)]
        differing = differences(taken, family.through_plain_loop(checkpoint, taken))
        left_out = f" ({len(rows) - len(taken)} left out)" if len(taken) < len(rows) else ""
        print(f"  {path.name}, plain loop: {len(taken) - len(differing)} of {len(taken)} rows{left_out}", flush=True)
        yield from differing


if __name__ == "__main__":
    main()
