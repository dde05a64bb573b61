"""A training run: model, optimisers, and one step after the other on batches that follow from seed and step.

A run that is saved and resumed is the unbroken one, on a CPU bit by bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from engine.core.errors import LoadError
from engine.demo.decode import hidden_rows
from engine.demo.training.cached import cached_rows
from engine.demo.training.noise import IGNORED, Batch, Sampler, seen
from engine.demo.training.recipe import (
    ADAM_LR,
    AUXILIARY_WEIGHT,
    CLUE_LAYER,
    MUON_LR,
    OWNER_LAYER,
    Recipe,
    geometry,
    initialise,
    learning_rate,
    optimisers,
)
from engine.demo.training.steps import GraphedSteps
from engine.models import describe, load_model
from engine.models.layers import Transformer

AHEAD = 16
"""Batches that each process draws ahead."""


def loss_of(model: Transformer, batch: Batch, block: int | None) -> Tensor:
    """Cross-entropy over the targets, and over the owners and clues, which the head reads off the hidden rows behind
    OWNER_LAYER and CLUE_LAYER: deep supervision (Lee et al., 2015). A batch with `opening` has only targets."""
    if batch.opening is not None:
        return _mean_loss(model, cached_rows(model, batch).flatten(0, 1), batch.targets)
    visible = None if block is None else seen(batch, block)
    with kept_rows(model) as kept:
        last = hidden_rows(model, batch.ids, visible, batch.positions).flatten(0, 1)
    auxiliary = _mean_loss(model, kept[OWNER_LAYER], batch.owners) + _mean_loss(model, kept[CLUE_LAYER], batch.clues)
    return _mean_loss(model, last, batch.targets) + AUXILIARY_WEIGHT * auxiliary


def _mean_loss(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the rows with a target, 0 if there is none. A GPU scores all rows: to pick some would
    mean to wait for their number."""
    targets = targets.flatten()
    if hidden.device.type == "cpu":
        picked = (targets != IGNORED).nonzero()[:, 0]
        hidden, targets = hidden[picked], targets[picked]
    loss = F.cross_entropy(model.logits(hidden), targets, ignore_index=IGNORED, reduction="sum")
    return loss / (targets != IGNORED).sum().clamp(min=1)


@contextmanager
def kept_rows(model: Transformer) -> Iterator[list[Tensor]]:
    """Keeps the hidden rows [rows, dim] behind each layer of a forward."""
    kept: list[Tensor] = []
    plain = model.parts

    def after(*given: Any) -> Tensor:
        kept.append(plain.after(*given))
        return kept[-1]

    model.parts = plain._replace(after=after)
    try:
        yield kept
    finally:
        model.parts = plain


class Batches(Dataset[Batch]):
    """The batch of each step of a run."""

    def __init__(self, sampler: Sampler, steps: int) -> None:
        self.sampler, self.steps = sampler, steps

    def __getitem__(self, step: int) -> Batch:
        return self.sampler.batch(step, min(1.0, step / self.steps))


class Run:
    """The model, its optimisers and how far they are."""

    def __init__(self, sampler: Sampler, recipe: Recipe, device: str = "cpu", highest_rate: float = 1.0) -> None:
        """`highest_rate` is a factor on MUON_LR and ADAM_LR. Random weights follow from the sampler's seed."""
        self.recipe, self.device, self.highest_rate = recipe, torch.device(device), highest_rate
        tokenizer = sampler.rows.tokenizer
        self.model = Transformer(geometry(tokenizer.get_vocab_size(), qk_norm=recipe.block is not None))
        self.model.fill_tables()
        initialise(self.model, torch.Generator().manual_seed(sampler.seed))
        self.model.to(self.device)
        self.muon, self.adam = optimisers(self.model)
        self.sampler, self.step = sampler, 0
        self._parts = self.model.parts
        self._learn = GraphedSteps(self._learnt) if self.device.type == "cuda" else self._learnt
        self._losses, self._counted = torch.zeros((), device=self.device), 0

    def begin_with(self, folder: Path) -> None:
        """Takes a checkpoint's weights in place of random ones; layers that it lacks stay as they are, the identity.

        Raises LoadError if there is none, or if it has layers more.
        """
        begun = load_model(folder, describe(folder), torch.float32, self.device)
        _, extra = self.model.load_state_dict(begun.state_dict(), strict=False)
        if extra:
            raise LoadError(f"{folder} has weights that the recipe's geometry has no place for: {extra[0]}")

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
        """Writes what `resume` reads; the file arrives whole."""
        part = path.with_suffix(".part")
        states = {"model": self.model.state_dict(), "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}
        torch.save(states | {"step": self.step}, part)
        part.replace(path)

    def resume(self, path: Path) -> None:
        """Goes on where a run of the same recipe was saved. Raises RuntimeError if its geometry is another."""
        state = torch.load(path, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
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
