"""Prints how many answers of each model were valid: `python -m tests.constrained --answers 2000 --seed 0`."""

import argparse
import time
from pathlib import Path

from tests.constrained.answers import MODELS, Model, faults, shares


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    num_faults = 0
    for folder, count in zip(MODELS, shares(args.answers), strict=True):
        started, model = time.monotonic(), Model(folder)
        asked = model.asked(count, args.seed)
        found = list(faults(model, asked, args.seed))
        for fault in found:
            print(fault)
        num_faults += len(found)
        free = len(asked) - count
        print(
            f"{Path(folder).name}: {count - len(found)} of {count} valid, beside {free} without a constraint, "
            f"{len(model.constraints)} constraints, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    print(f"invalid: {num_faults}")
    return int(num_faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
