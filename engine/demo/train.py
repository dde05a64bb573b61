"""Trains the demo model from scratch on a CPU and exports it into this folder: `python -m engine.demo.train`.

Every step's data follow from (seed, step), so a run that is stopped and resumed from its state file is the same run.
`--steps` sets the length of the cosine and may be changed when resuming. The curve goes to `docs/`.
"""

import argparse
import csv
import math
import time
from pathlib import Path
from statistics import fmean

import torch
from rich.progress import Progress
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from engine.demo import PATH
from engine.demo.build_tokenizer import save
from engine.demo.checkpoint import export
from engine.demo.decode import accuracy, hidden_rows
from engine.demo.muon import Muon
from engine.demo.samples import FORMS, Sampler
from engine.demo.tasks import TASKS, problems
from engine.models.layers import Transformer, TransformerConfig

MUON_LR, ADAM_LR, FINAL_LR, WARMUP = 0.02, 2e-3, 0.05, 100
CURVE = Path("docs/demo-training.csv")
THRESHOLD = 0.9
CURVE_SEED = 1
"""Held-out problems of the curve; the final numbers use another seed."""


def geometry(vocab_size: int) -> TransformerConfig:
    """About a million parameters."""
    return TransformerConfig(
        dim=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        ff_dim=384,
        vocab_size=vocab_size,
        max_positions=1024,
        norm_eps=1e-5,
        rope_theta=500000.0,
    )


def initialise(model: Transformer, generator: torch.Generator) -> None:
    """Every layer starts as the identity, on embeddings of unit size.

    Small embeddings are drowned by what the first layer adds to them, and then nothing learns to copy a word.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
        elif name.endswith(("out.weight", "down.weight")):
            nn.init.zeros_(parameter)
        else:
            std = {"embed": 1.0, "head.weight": 0.02}.get(name, parameter.shape[1] ** -0.5)
            nn.init.normal_(parameter, std=std, generator=generator)


def optimisers(model: Transformer) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices of the layers, AdamW for embedding, head and norms."""
    parts = {"qkv": 3, "gate_up": 2}
    named = {
        name: parameter for name, parameter in model.named_parameters() if "blocks" in name and parameter.ndim == 2
    }
    matrices = [(parameter, parts.get(name.split(".")[-2], 1)) for name, parameter in named.items()]
    others = [parameter for name, parameter in model.named_parameters() if name not in named]
    return Muon(matrices, MUON_LR), torch.optim.AdamW(others, ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)


def learning_rate(step: int, steps: int) -> float:
    """The factor on both base rates: a short warm-up, then a cosine."""
    cosine = FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
    return cosine * min(1.0, (step + 1) / WARMUP)


def loss_of(model: Transformer, sampler: Sampler, step: int) -> Tensor:
    """Plain cross-entropy over the masked tokens of the step's batch."""
    batch = sampler.batch(step)
    hidden = hidden_rows(model, batch.noisy)[batch.masked]
    return F.cross_entropy(model.logits(hidden), batch.clean[batch.masked])


class Run:
    """The model, its optimisers and how far they are."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.model = Transformer(geometry(tokenizer.get_vocab_size()))
        self.model.fill_tables()
        initialise(self.model, torch.Generator().manual_seed(seed))
        self.muon, self.adam = optimisers(self.model)
        self.sampler, self.step = Sampler(tokenizer, seed), 0

    def advance(self, steps: int) -> float:
        """One step of a run of `steps`; returns its loss."""
        factor = learning_rate(self.step, steps)
        loss = loss_of(self.model, self.sampler, self.step)
        torch.autograd.backward(loss)
        for optimiser, lr in ((self.muon, MUON_LR), (self.adam, ADAM_LR)):
            optimiser.param_groups[0]["lr"] = lr * factor
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        return loss.item()

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        states = {"model": self.model.state_dict(), "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}
        torch.save(states | {"step": self.step}, part)
        part.replace(path)

    def resume(self, path: Path) -> None:
        state = torch.load(path)
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.step = state["step"]


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
    parser.add_argument("--steps", type=int, default=12000, help="length of the cosine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=500, help="steps between two points of the curve")
    parser.add_argument("--problems", type=int, default=32, help="problems per family at each point")
    parser.add_argument("--state", type=Path, default=Path("demo-training.pt"), help="resumed from when it exists")
    parser.add_argument("--curve", type=Path, default=CURVE, help="CSV file that the curve is added to")
    parser.add_argument("--export", type=Path, default=PATH, help="folder of the checkpoint")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    save(args.export)
    tokenizer = Tokenizer.from_file(str(args.export / "tokenizer.json"))
    run = Run(tokenizer, args.seed)
    if args.state.exists():
        run.resume(args.state)
    asked = {
        task: [(p, FORMS[i % len(FORMS)](p, ())[0]) for i, p in enumerate(problems(task, CURVE_SEED, args.problems))]
        for task in TASKS
    }
    with Progress() as progress:
        bar = progress.add_task("training", total=args.steps, completed=run.step)
        losses, started = [], time.monotonic()
        while run.step < args.steps:
            losses.append(run.advance(args.steps))
            progress.update(bar, completed=run.step)
            if run.step % args.every and run.step < args.steps:
                continue
            point = {"step": run.step, "loss": fmean(losses)}
            point |= {task: accuracy(run.model, tokenizer, asked[task], THRESHOLD) for task in TASKS}
            append(args.curve, point | {"seconds": round(time.monotonic() - started)})
            progress.console.print(point)
            losses, started = [], time.monotonic()
            export(run.model, tokenizer, args.export)
            run.save(args.state)


if __name__ == "__main__":
    main()
