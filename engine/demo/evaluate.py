"""Exact accuracy of a bundled model per family and form of prompt: `python -m engine.demo.evaluate demo`."""

import argparse
from itertools import islice
from pathlib import Path
from random import Random

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from engine.demo import FOLDERS
from engine.demo.decode import accuracy
from engine.demo.families.problem import Problem
from engine.demo.samples import FORMS, chat_form, prompt_of
from engine.demo.tasks import TASKS, examples, problems
from engine.models import describe, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=FOLDERS)
    parser.add_argument("--folder", type=Path, help="of the checkpoint [default: the bundled one]")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("-n", type=int, default=200, help="problems per family")
    parser.add_argument("--canvas", type=int, default=128)
    parser.add_argument("--threshold", type=float, default=0.9, help="of the second figure of each pair")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 3], help="solved examples before the question")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    folder = args.folder or FOLDERS[args.name]
    checkpoint = describe(folder)
    model = load_model(folder, checkpoint, torch.float32, torch.device("cpu"))
    spec = checkpoint.spec
    block = spec.block_length if spec.attention == "block_causal" else None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    columns = [f"{form.__name__.removesuffix('_form')}, {shots}-shot" for shots in args.shots for form in FORMS]
    title = f"Exact answers of {args.n}: one token a step / all at least {args.threshold} sure"
    table = Table("family", *columns, title=title)
    for task in args.tasks:
        cells = []
        for shots in args.shots:
            for form in FORMS:
                asked = [
                    (problem, prompt_of(form(problem, _solved(problem, shots))))
                    for problem in problems(task, args.seed, args.n)
                    if form is chat_form or not problem.tools
                ]
                rules = (None, args.threshold) if asked else ()
                shares = (accuracy(model, tokenizer, asked, rule, args.canvas, block) for rule in rules)
                cells.append(" / ".join(f"{share:.3f}" for share in shares))
        table.add_row(task, *cells)
    Console().print(table)


def _solved(problem: Problem, number: int) -> list[Problem]:
    """Training problems that may stand solved before this one, drawn from its text."""
    return list(islice(examples(problem, Random(problem.key)), number))


if __name__ == "__main__":
    main()
