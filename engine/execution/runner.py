"""The model and its KV pool on a device: turns a batch into the logits of its target rows.

Knows no requests and no policies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.core.arrays import Ids
from engine.execution.batch import Batch
from engine.execution.budget import SCORING_BYTES
from engine.execution.graphs import Graphs, Replay, Shape, record
from engine.kernels.attention import Kernel, PagedContext, attend_spans
from engine.kernels.kv.pool import KVPool, LayeredKVPool
from engine.kernels.rollout import column_sums
from engine.kernels.transfer import Upload, to_device
from engine.models.layers import Transformer, TransformerConfig
from engine.models.noised import NoisedTransformer
from engine.models.quantised.schemes import stored_bytes
from engine.models.sandwich import OpenRows
from engine.scoring.slices import TARGETS_AT_ONCE, Rows

MOVED_AT_ONCE = 4096
"""Slots copied at once: each layer's are held twice meanwhile."""


@dataclass(frozen=True, slots=True)
class TargetLogits:
    """[targets, vocab_size], each row computed when it is asked for: all at once may be gigabytes."""

    runner: "Runner"
    hidden: Tensor
    """[targets, dim]"""
    vector_slots: Tensor | None = None
    """int64 [targets] where `remember` writes, if the model remembers anything."""

    def __getitem__(self, some: slice) -> Tensor:
        return self.runner.head(self.hidden[some])

    @property
    def proposed_at_once(self) -> int:
        return TARGETS_AT_ONCE * SCORING_BYTES // max(self.runner.bytes_per_proposal, 1)

    def propose(self, some: slice, mask_id: int | None) -> tuple[Tensor, Tensor]:
        return self.runner.propose(self.hidden[some], mask_id)

    def part(self, indices: Tensor) -> "TargetLogits":
        slots = None if self.vector_slots is None else self.vector_slots[indices]
        return TargetLogits(self.runner, self.hidden[indices], slots)

    def remember(self, some: slice, rows: Rows, probabilities: Tensor) -> None:
        assert self.vector_slots is not None, "a model whose rows carry nothing beside their tokens"
        self.runner.remember(rows.of(self.vector_slots[some]), probabilities)


class ModelOutput(NamedTuple):
    """The model's output for a batch, still on the device."""

    logits: TargetLogits
    importance: list[Tensor]
    """For each plan that asks for the rollout: float32 [visible end], the attention that reaches each position."""
    retention: list[Tensor]
    """For each plan whose eviction asks for it: float32 [candidates], what each is worth keeping."""


class Runner:
    """Holds weights and KV; `forward` is the engine's only expensive call."""

    def __init__(
        self, model: Transformer, pool: KVPool | LayeredKVPool, device: torch.device, kernel: Kernel = attend_spans
    ) -> None:
        self.model = model
        self.pool = pool
        self.device = device
        self.kernel = kernel
        config = model.config
        self._windowed = frozenset(layer for layer in range(config.num_layers) if config.window_of(layer))
        self._vectors = _block_vectors(model, pool.dump, device)
        self.graphs: Graphs | None = None
        """Of small steps, once they are captured; None where all steps are launched kernel by kernel."""

    def capture(self, shapes: Sequence[Shape]) -> None:
        """Makes `graphs` of the forward, if that works here. Its kernel must read page tables only."""
        self.graphs = record(shapes, self.hidden, self.device)

    def forward(self, batch: Batch | Replay) -> ModelOutput:
        """Writes K and V of the batch's rows. The head runs only when targets' logits are read (`TargetLogits`)."""
        if isinstance(batch, Replay):
            return ModelOutput(TargetLogits(self, batch.run()), [], [])
        hidden = self.hidden(batch)
        importance = [
            column_sums(layers, batch.positions[segment.start : segment.stop], layers[0].shape[-1])
            for segment, layers in batch.watched
        ]
        retention = [torch.stack(each.layers).sum(dim=0) for each in batch.judged]
        logits = TargetLogits(self, hidden, batch.open_rows.write if batch.open_rows else None)
        return ModelOutput(logits, importance, retention)

    def hidden(self, batch: Batch) -> Tensor:
        """[targets, dim], kernel by kernel. Fills the layers of the batch's watched segments."""
        windowed = batch.windowed, self._windowed
        context = PagedContext(
            self.pool, batch.slots, batch.layout, self.kernel, batch.watched, *windowed, batch.judged
        )
        if batch.open_rows:
            assert self._vectors is not None, "random tokens of a model that has a mask"
            open_rows = OpenRows(batch.open_rows.is_open, self._vectors[batch.open_rows.read])
            hidden: Tensor = self.model(batch.ids, batch.positions, context, batch.logit_rows, open_rows=open_rows)
        else:
            hidden = self.model(batch.ids, batch.positions, context, batch.logit_rows, batch.adapted)
        return hidden

    def remember(self, slots: Tensor, probabilities: Tensor) -> None:
        """Writes what rows carry next, where `batch.vector_index` says, by float32 probabilities [some, vocab]."""
        assert isinstance(self.model, NoisedTransformer)
        assert self._vectors is not None
        self._vectors[slots] = self.model.vectors(probabilities)

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [some, dim] -> logits [some, vocab_size]."""
        return self.model.logits(hidden)

    def propose(self, hidden: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
        """hidden [some, dim] -> the best tokens [some] but the mask, and their log-odds [some]."""
        return self.model.propose(hidden, mask_id)

    def move(self, sources: Ids, destinations: Ids) -> None:
        """Copies keys and values of some slots to others, behind all that was launched before.

        A slot that is written may be read before, not after it. All layers' heads are alike.
        """
        assert isinstance(self.pool, KVPool), "keys and values of unlike layers are not moved"
        for first in range(0, len(sources), MOVED_AT_ONCE):
            some = slice(first, first + MOVED_AT_ONCE)
            upload = Upload(self.device)
            moved = [upload.add(slots[some]) for slots in (sources, destinations)]
            upload.send()
            self.pool.move(*(slots.tensor for slots in moved))

    def clear(self, slots: Ids) -> None:
        """Zeroes keys and values of these slots.

        A failed request may have left NaN, which a kernel whose weights are zero would spread.
        """
        self.pool.clear(to_device(slots, self.device))

    def everywhere(self, work: Callable[..., None], *arguments: Any) -> None:
        """`work(runner, *arguments)`, a function of a module: on every rank, where there are several."""
        work(self, *arguments)

    def check(self) -> None:
        """Raises DeviceLost if no call can succeed any more, as far as that is known without a call."""

    @property
    def bytes_per_proposal(self) -> int:
        """Bytes that `propose` takes for each logit of the vocabulary."""
        return self.model.bytes_per_proposal

    @property
    def kv_bytes(self) -> int:
        """Of all slots but the dump: keys and values, and what positions carry beside their tokens."""
        vectors = self.pool.dump * self.model.config.vector_numbers * self.model.embed.element_size()
        return self.pool.num_bytes + vectors

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def weight_bytes(self) -> int:
        return sum(map(stored_bytes, self.model.parameters()))


def _block_vectors(model: Transformer, dump: int, device: torch.device) -> Tensor | None:
    """[2 * (slots + 1), dim] what positions carry beside their tokens, in two turns; None if they carry nothing.

    Rows that carry nothing yet read those of the dump, which nobody writes.
    """
    if not model.config.vector_numbers:
        return None
    vectors = torch.empty(2 * (dump + 1), model.config.dim, dtype=model.embed.dtype, device=device)
    vectors[dump].zero_()
    return vectors


def make_pool(
    geometry: TransformerConfig, slots: int, dtype: torch.dtype, device: torch.device, prune: float = 0.0
) -> KVPool | LayeredKVPool:
    """An empty pool of so many slots, for the heads of the model's layers. `prune`: see `EngineConfig.kv_prune`."""
    heads = [geometry.heads_of(layer)[:2] for layer in range(geometry.num_layers)]
    if len(set(heads)) == 1:
        return KVPool(geometry.num_layers, slots, *heads[0], dtype, device, prune)
    return LayeredKVPool(heads, slots, dtype, device, prune)
