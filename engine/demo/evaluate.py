"""Exact accuracy of the bundled model per family and form of prompt: `python -m engine.demo.evaluate`."""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from engine.demo import PATH
from engine.demo.decode import accuracy
from engine.demo.samples import FORMS
from engine.demo.tasks import TASKS, Problem, problems
from engine.models import describe, load_model
from engine.models.layers import Transformer


def score(
    model: Transformer, tokenizer: Tokenizer, asked: list[tuple[Problem, str]], threshold: float, canvas: int
) -> str:
    """One token a step / every token at least `threshold` sure."""
    return " / ".join(f"{accuracy(model, tokenizer, asked, rule, canvas):.3f}" for rule in (None, threshold))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=PATH)
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("-n", type=int, default=200, help="problems per family")
    parser.add_argument("--canvas", type=int, default=64)
    parser.add_argument("--threshold", type=float, default=0.9, help="of the second column of each pair")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 3], help="solved examples before the question")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = load_model(args.model, describe(args.model), torch.float32, torch.device("cpu"))
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    title = f"Exact answers of {args.n}: one token a step / all at least {args.threshold} sure"
    table = Table("prompt", *TASKS, title=title)
    for shots in args.shots:
        for form in FORMS:
            name = form.__name__.removesuffix("_form") + (f" {shots}-shot" if shots else "")
            cells = []
            for task in TASKS:
                examples = problems(task, args.seed, shots, "train")
                asked = [(problem, form(problem, examples)[0]) for problem in problems(task, args.seed, args.n)]
                cells.append(score(model, tokenizer, asked, args.threshold, args.canvas))
            table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
