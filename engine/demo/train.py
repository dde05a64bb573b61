"""Trains a bundled model from scratch: `python -m engine.demo.train demo`, or `demo-block`.

Every step's data follow from (seed, step, --steps), so a run that is stopped and resumed from its state file is the
same run. On a GPU the data are the same, and sums differ in their last bits. `--hours` stops a run early, to
be resumed. The learning rate is constant until its last part, so `--steps` may be changed before that when resuming.
The curve goes to `docs/`.
"""

import argparse
import csv
import itertools
import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from rich.console import Console
from tokenizers import Tokenizer

from engine.core.errors import LoadError
from engine.demo import FOLDERS
from engine.demo.build_tokenizer import save
from engine.demo.checkpoint import export
from engine.demo.decode import accuracy
from engine.demo.families.problem import Problem
from engine.demo.samples import FORMS, LOOKUPS_SHARE, chat_form, prompt_of
from engine.demo.tasks import TASKS, examples, problems
from engine.demo.training.noise import TOKENS_PER_BATCH, Sampler
from engine.demo.training.recipe import RECIPES
from engine.demo.training.run import Run
from engine.models.layers import Transformer

THRESHOLD = 0.9
CURVE_SEED = 1
"""Held-out problems of the curve; the final numbers use another seed."""
CURVES = {name: Path(f"docs/{name}-training.csv") for name in FOLDERS}
REPORTED = 60.0
"""Seconds between two lines of the log, with each of which the state is saved."""
SHOTS = 3
"""Solved examples before the questions of the column `few_shot`."""


class Examination:
    """The held-out problems of the curve, `number` of each family, and the accuracy on them."""

    def __init__(self, tokenizer: Tokenizer, number: int) -> None:
        self.tokenizer = tokenizer
        self.asked = {task: self._forms(problems(task, CURVE_SEED, number)) for task in TASKS}
        few = itertools.chain.from_iterable(problems(task, CURVE_SEED, max(number // 4, 1)) for task in TASKS)
        self.asked["few_shot"] = [(problem, prompt_of(chat_form(problem, self._shots(problem)))) for problem in few]

    def accuracy(self, model: Transformer, block: int | None) -> dict[str, float]:
        """The share of exact answers, from 0 to 1, by column of the curve."""
        return {
            task: accuracy(model, self.tokenizer, asked, THRESHOLD, 128 if task == "tale" else 64, block)
            for task, asked in self.asked.items()
        }

    @staticmethod
    def _forms(asked: Iterable[Problem]) -> list[tuple[Problem, str]]:
        forms = itertools.cycle(FORMS)
        return [(problem, prompt_of((chat_form if problem.tools else next(forms))(problem))) for problem in asked]

    @staticmethod
    def _shots(problem: Problem) -> list[Problem]:
        return list(itertools.islice(examples(problem, Random(problem.key)), SHOTS))


def append(curve: Path, point: dict[str, float]) -> None:
    """Adds a row to the CSV file, whose header comes first."""
    fresh = not curve.exists()
    with curve.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(point))
        if fresh:
            writer.writeheader()
        writer.writerow({name: round(value, 4) for name, value in point.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--steps", type=int, help="length of the run, learning rate and all [default: the recipe's]")
    parser.add_argument("--hours", type=float, default=float("inf"), help="stop after so many, to be resumed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="checkpoint to begin with [default: random weights]")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates [default: 1]")
    parser.add_argument(
        "--tokens",
        type=int,
        default=TOKENS_PER_BATCH,
        help=f"about so many to a batch, over all its rows [default: {TOKENS_PER_BATCH}]",
    )
    parser.add_argument(
        "--lookups",
        type=float,
        nargs=2,
        default=LOOKUPS_SHARE,
        metavar=("FIRST", "LAST"),
        help="share of batches of texts that are asked for all they say, at the start and at the end of the run "
        f"[default: {LOOKUPS_SHARE[0]} {LOOKUPS_SHARE[1]}]",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda [default: cpu]")
    parser.add_argument("--compile", action="store_true", help="with torch's compiler: fewer kernels, on a GPU alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw batches [default: this one does]")
    parser.add_argument("--every", type=int, default=500, help="steps between two points of the curve")
    parser.add_argument("--problems", type=int, default=16, help="problems per family at each point")
    parser.add_argument("--state", type=Path, help="resumed from when it exists [default: NAME-training.pt]")
    parser.add_argument(
        "--curve", type=Path, help="CSV file of the curve, begun anew by a new run [default: docs/NAME-training.csv]"
    )
    parser.add_argument("--export", type=Path, help="folder of the checkpoint [default: the bundled one]")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of texts this short, threads cost more than they gain
    recipe = RECIPES[args.name] if args.steps is None else replace(RECIPES[args.name], steps=args.steps)
    state, folder = args.state or Path(f"{args.name}-training.pt"), args.export or FOLDERS[args.name]
    curve = args.curve or CURVES[args.name]
    save(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    torch.backends.cuda.matmul.allow_tf32 = True  # of no meaning on a CPU
    with stream_of(args.device):
        sampler = Sampler(tokenizer, args.seed, recipe.block, args.tokens, tuple(args.lookups))
        run = Run(sampler, recipe, args.device, args.rate)
        if args.weights:
            try:
                run.begin_with(args.weights)
            except LoadError as error:
                parser.error(f"--weights: {error}")
        if state.exists():
            run.resume(state)
        else:
            curve.unlink(missing_ok=True)
        if args.compile:
            run.compile()
        examination = Examination(tokenizer, args.problems)
        console = Console(highlight=False, soft_wrap=True)
        first = run.step
        started = reported = examined = time.monotonic()
        for batch in run.batches(args.workers):
            run.advance(batch)
            hours = (time.monotonic() - started) / 3600
            is_over = run.step == recipe.steps or hours >= args.hours
            is_point = run.step % args.every == 0 or is_over
            if not is_point and time.monotonic() - reported < REPORTED:
                continue
            loss = run.mean_loss()
            run.save(state)
            left = hours / (run.step - first) * (recipe.steps - run.step)
            console.print(f"step {run.step} of {recipe.steps}, loss {loss:.3f}, {left:.1f} h left")
            reported = time.monotonic()
            if not is_point:
                continue
            export(run.model, tokenizer, folder, recipe.block)
            point = {"step": run.step, "loss": loss} | examination.accuracy(run.model, recipe.block)
            append(curve, point | {"seconds": round(time.monotonic() - examined)})
            run.forget_losses()
            console.print(" ".join(f"{name} {value:.3g}" for name, value in point.items()))
            reported = examined = time.monotonic()
            if is_over:
                break


def stream_of(device: str) -> AbstractContextManager[object]:
    """Where a run's kernels go: a CUDA graph cannot be captured on the default stream."""
    if torch.device(device).type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
