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
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from engine.demo import FOLDERS
from engine.demo.build_tokenizer import save
from engine.demo.checkpoint import export
from engine.demo.decode import accuracy, hidden_rows
from engine.demo.families.problem import Problem
from engine.demo.muon import Muon
from engine.demo.noise import IGNORED, Batch, Sampler, seen
from engine.demo.samples import FORMS, chat_form, prompt_of
from engine.demo.steps import GraphedSteps
from engine.demo.tasks import TASKS, examples, problems
from engine.models import describe, load_model
from engine.models.layers import Transformer, TransformerConfig

MUON_LR, ADAM_LR, FINAL_LR, WARMUP = 0.02, 2e-3, 0.02, 100
DECAY_FROM = 0.55
"""The share of a run after which the learning rate falls, on a line, to FINAL_LR of what it was."""
THRESHOLD = 0.9
CURVE_SEED = 1
"""Held-out problems of the curve; the final numbers use another seed."""
CURVES = {name: Path(f"docs/{name}-training.csv") for name in FOLDERS}
REPORTED = 60.0
"""Seconds between two lines of the log, with each of which the state is saved."""
AHEAD = 16
"""Batches that each process draws ahead."""
SHOTS = 3
"""Solved examples before the questions of the column `few_shot`."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes one of the bundled models."""

    block: int | None
    """The block of a block-causal model; None for full attention."""
    steps: int


RECIPES = {"demo": Recipe(block=None, steps=28000), "demo-block": Recipe(block=16, steps=24000)}


def geometry(vocab_size: int, *, qk_norm: bool) -> TransformerConfig:
    """About 2.5 million parameters."""
    return TransformerConfig(
        dim=128,
        num_layers=8,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        ff_dim=512,
        vocab_size=vocab_size,
        max_positions=1024,
        norm_eps=1e-5,
        rope_theta=10000.0,
        qk_norm=qk_norm,
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
    """Muon for the matrices of the layers, AdamW for embedding, head and norms. Their rates are tensors."""
    parts = {"qkv": 3, "gate_up": 2}
    named = {
        name: parameter for name, parameter in model.named_parameters() if "blocks" in name and parameter.ndim == 2
    }
    matrices = [(parameter, parts.get(name.split(".")[-2], 1)) for name, parameter in named.items()]
    others = [parameter for name, parameter in model.named_parameters() if name not in named]
    device = model.embed.device
    muon = Muon(matrices, torch.tensor(MUON_LR, device=device))
    adam = torch.optim.AdamW(
        others,
        torch.tensor(ADAM_LR, device=device),
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=True,
        capturable=device.type == "cuda",
    )
    return muon, adam


def learning_rate(step: int, steps: int) -> float:
    """The factor on both highest rates: a short warm-up, then constant, then a line down."""
    left = max(0.0, 1 - step / steps) / (1 - DECAY_FROM)
    return min(1.0, (step + 1) / WARMUP) * (FINAL_LR + (1 - FINAL_LR) * min(1.0, left))


def loss_of(model: Transformer, batch: Batch, block: int | None) -> Tensor:
    """Plain cross-entropy over the targets. All rows are scored: to pick some would mean to wait for their number."""
    visible = None if block is None else seen(batch, block)
    hidden = hidden_rows(model, batch.ids, visible, batch.positions)
    return F.cross_entropy(model.logits(hidden.flatten(0, 1)), batch.targets.flatten(), ignore_index=IGNORED)


class Batches(Dataset[Batch]):
    """The batch of each step of a run."""

    def __init__(self, sampler: Sampler, steps: int) -> None:
        self.sampler, self.steps = sampler, steps

    def __getitem__(self, step: int) -> Batch:
        return self.sampler.batch(step, min(1.0, step / self.steps))


class Run:
    """The model, its optimisers and how far they are."""

    def __init__(
        self, tokenizer: Tokenizer, recipe: Recipe, seed: int, device: str = "cpu", highest_rate: float = 1.0
    ) -> None:
        """`highest_rate` is a factor on MUON_LR and ADAM_LR."""
        self.recipe, self.device, self.highest_rate = recipe, torch.device(device), highest_rate
        self.model = Transformer(geometry(tokenizer.get_vocab_size(), qk_norm=recipe.block is not None))
        self.model.fill_tables()
        initialise(self.model, torch.Generator().manual_seed(seed))
        self.model.to(self.device)
        self.muon, self.adam = optimisers(self.model)
        self.sampler, self.step = Sampler(tokenizer, seed, recipe.block), 0
        self._parts = self.model.parts
        self._learn = GraphedSteps(self._learnt) if self.device.type == "cuda" else self._learnt
        self._losses, self._counted = torch.zeros((), device=self.device), 0

    def begin_with(self, folder: Path) -> None:
        """Takes a checkpoint's weights in place of random ones. Raises LoadError if there is none."""
        begun = load_model(folder, describe(folder), torch.float32, self.device)
        self.model.load_state_dict(begun.state_dict())

    def compile(self) -> None:
        """Has steps use torch's compiler for what a layer does beside attention. For a GPU."""
        plain = self.model.parts
        self.model.compile_parts()
        self._parts, self.model.parts = self.model.parts, plain

    def batches(self, workers: int = 0) -> Iterator[Batch]:
        """The batches of all steps to come, drawn by so many processes; by this one if 0."""
        return iter(
            DataLoader(
                Batches(self.sampler, self.recipe.steps),
                batch_size=None,
                sampler=range(self.step, self.recipe.steps),
                num_workers=workers,
                prefetch_factor=AHEAD if workers else None,
                pin_memory=self.device.type == "cuda",
            )
        )

    def advance(self, batch: Batch) -> None:
        """One step, on its batch."""
        factor = self.highest_rate * learning_rate(self.step, self.recipe.steps)
        for optimiser, lr in ((self.muon, MUON_LR), (self.adam, ADAM_LR)):
            optimiser.param_groups[0]["lr"].fill_(lr * factor)
        self._learn(batch)
        self.step += 1
        self._counted += 1

    def mean_loss(self) -> float:
        """Of the steps since `forget_losses`; the host waits for them."""
        return self._losses.item() / self._counted

    def forget_losses(self) -> None:
        """Has the mean begin anew."""
        self._losses.zero_()
        self._counted = 0

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        states = {"model": self.model.state_dict(), "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}
        torch.save(states | {"step": self.step}, part)
        part.replace(path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        for optimiser in (self.muon, self.adam):  # states from before rates were tensors have numbers
            group = optimiser.param_groups[0]
            group["lr"] = torch.as_tensor(group["lr"], device=self.device)
        self.step = state["step"]

    def _learnt(self, batch: Batch) -> None:
        plain, self.model.parts = self.model.parts, self._parts  # compiled ones, if any, are for training alone
        loss = loss_of(self.model, batch, self.recipe.block)
        self.model.parts = plain
        torch.autograd.backward(loss)
        for optimiser in (self.muon, self.adam):
            optimiser.step()
            optimiser.zero_grad()
        self._losses += loss.detach()


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
    parser.add_argument("--weights", type=Path, help="folder of the checkpoint to begin with [default: random weights]")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates [default: 1]")
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
    with stream_of(args.device):
        run = Run(tokenizer, recipe, args.seed, args.device, args.rate)
        if args.weights:
            run.begin_with(args.weights)
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
    torch.set_float32_matmul_precision("high")
    return torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
