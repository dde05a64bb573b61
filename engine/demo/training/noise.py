"""Batches: rows with some of their tokens masked, for a model that attends to everything and for a block-causal one.

Everything of a step follows from (seed, step, progress), so a resumed run sees what an unbroken one would. A token of
the EOS tail is seldom a target: one says as much as a hundred of them.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from engine.demo.build_tokenizer import token_id
from engine.demo.chat import EOS, MASK
from engine.demo.samples import (
    LOOKUPS_LENGTH,
    LOOKUPS_SHARE,
    SUM_LENGTH,
    SUMS_PER_ROW,
    SUMS_SHARE,
    Bucket,
    Row,
    Rows,
)
from engine.demo.training.masks import block_masks, full_masks

IGNORED = -100
"""The target where nothing has to be said."""
TOKENS_PER_BATCH = 8192
"""Of a run that says nothing else."""
TAIL_SHARE = 0.08
"""How often a masked token behind the first EOS is a target."""
CACHED_SHARE = 0.5
"""How often a batch of problems is computed as the cache `dual` does, where attention is full."""

_WITH_TOOLS = {"tool": 7, "tale": 2}
FULL_BUCKETS = (
    Bucket(56, (0.36, 0.22)),
    Bucket(96, (0.36, 0.29)),
    Bucket(160, (0.12, 0.13), (0, 4), {"tale": 4}),
    Bucket(288, (0.12, 0.20), (0, 8), _WITH_TOOLS),
    Bucket(448, (0.02, 0.10), (1, 8), _WITH_TOOLS),
    Bucket(608, (0.02, 0.06)),
)
"""The last one's rows are short problems on long canvases."""
BLOCK_BUCKETS = (
    Bucket(56, (0.34, 0.22)),
    Bucket(96, (0.38, 0.32)),
    Bucket(160, (0.14, 0.16), (1, 4), {"tale": 4}),
    Bucket(288, (0.12, 0.20), (4, 8), _WITH_TOOLS),
    Bucket(448, (0.02, 0.10), (8, 8), _WITH_TOOLS),
)
"""All answers of a row are targets, so that many solved examples cost nothing."""


class Batch(NamedTuple):
    """What the model is given, and what it must say: all [rows, length] and contiguous."""

    ids: Tensor
    positions: Tensor
    targets: Tensor
    """The right token, or IGNORED."""
    owners: Tensor
    """What a layer before the last must say: where a word of a text stands, the token of its owner; else IGNORED."""
    clues: Tensor
    """Likewise, where a judgement is a target: the token that decides it."""
    streams: Tensor | None = None
    """Block-causal: 0 in a row itself, else the number of the noisy copy of a block. None: full attention."""
    opening: Tensor | None = None
    """Rows as the cache `dual` sees them: the ids when their block opened, with all of the block masked. Keys and
    values outside of the block are computed from these."""
    opened: Tensor | None = None
    """bool: the places of that block."""


class Sampler:
    """Draws the batch of a step, of about `size` tokens over all its rows.

    `block`: the block of a block-causal model, None for full attention. `lookups`: how often a batch is nothing but
    texts with all that may be looked up in them, at the start of training and at its end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        seed: int,
        block: int | None,
        size: int = TOKENS_PER_BATCH,
        lookups: tuple[float, float] = LOOKUPS_SHARE,
    ) -> None:
        self.rows, self.seed, self.block, self.size, self.lookups = Rows(tokenizer), seed, block, size, lookups
        self.eos, self.mask = token_id(tokenizer, EOS), token_id(tokenizer, MASK)

    def batch(self, step: int, progress: float) -> Batch:
        """`progress` is the share of the run that is done."""
        rng = Random(f"{self.seed}/{step}")
        kind = rng.random()
        sums = _between(SUMS_SHARE, progress)
        if kind < sums:
            return self._practice(self.rows.sums, rng, SUMS_PER_ROW * SUM_LENGTH)
        if kind < sums + _between(self.lookups, progress):
            return self._practice(self.rows.lookups, rng, LOOKUPS_LENGTH)
        buckets = FULL_BUCKETS if self.block is None else BLOCK_BUCKETS
        bucket = rng.choices(buckets, [_between(bucket.share, progress) for bucket in buckets])[0]
        if self.block is None:
            rows = [self.rows.draw(rng, bucket) for _ in range(self.size // bucket.length)]
            return self._full(rows, bucket.length, rng)
        copies = max(4, round(bucket.length / self.block * 0.8))
        number = self.size // (bucket.length + copies * self.block)
        return self._blocks([self.rows.draw(rng, bucket) for _ in range(number)], rng, bucket.length, copies)

    def _filled(self, rows: Sequence[Row], length: int) -> Tensor:
        """The rows' ids, EOS behind them."""
        ids = torch.full((len(rows), length), self.eos)
        for row, filled in zip(rows, ids, strict=True):
            filled[: len(row.ids)] = torch.tensor(row.ids)
        return ids

    def _practice(self, draw: Callable[[Random], Row], rng: Random, length: int) -> Batch:
        """Of half the rows all answers are masked at once, so that none can be copied from another one; of the others
        each token of an answer as often as not. Nothing else is masked.

        Of a block-causal model too, in one stream: twice as many answers to a token as in copies of their blocks.
        """
        rows = [draw(rng) for _ in range(self.size // length)]
        clean = self._filled(rows, length)
        masked = torch.zeros_like(clean, dtype=torch.bool)
        for row, marked in zip(rows, masked, strict=True):
            for start, end in row.answers:
                marked[start:end] = True
        some = masked[: len(rows) // 2]
        drawn = some & (torch.rand(some.shape, generator=torch.Generator().manual_seed(rng.getrandbits(60))) < 0.5)
        masked[: len(some)] = torch.where(drawn.any(dim=1, keepdim=True), drawn, some)
        owners, clues = (_at(length, given) for given in ([row.owners for row in rows], [row.clues for row in rows]))
        return self._batch(clean, masked, masked)._replace(owners=owners, clues=torch.where(masked, clues, IGNORED))

    def _full(self, rows: Sequence[Row], length: int, rng: Random) -> Batch:
        clean = self._filled(rows, length)
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        starts = torch.tensor([row.answers[-1][0] for row in rows])[:, None]
        ends = torch.tensor([len(row.ids) for row in rows])[:, None]
        told = (torch.arange(length) <= ends) | (torch.rand(clean.shape, generator=generator) < TAIL_SHARE)
        if rng.random() < CACHED_SHARE:
            masked, opened = block_masks(starts, ends, length, generator)
            batch = self._batch(clean, masked, masked & opened & told)
            return batch._replace(opening=torch.where(opened, self.mask, batch.ids), opened=opened)
        masked = full_masks(starts, ends, length, generator)
        return self._batch(clean, masked, masked & told)

    def _batch(self, clean: Tensor, masked: Tensor, wanted: Tensor) -> Batch:
        """A batch without owners and clues; `_practice` sets them."""
        positions = torch.arange(clean.shape[1]).repeat(len(clean), 1)
        ids, targets = torch.where(masked, self.mask, clean), torch.where(wanted, clean, IGNORED)
        nothing = torch.full_like(clean, IGNORED)
        return Batch(ids, positions, targets, nothing, nothing, None if self.block is None else torch.zeros_like(clean))

    def _blocks(self, rows: Sequence[Row], rng: Random, length: int, copies: int) -> Batch:
        """Clean rows of `length`, each followed by noisy copies of blocks that hold a part of an answer.

        A copy sees the clean blocks before its own, and itself: a prompt is computed once for many draws of noise.
        """
        assert self.block is not None
        clean = self._filled(rows, length)
        picked = [self._copy(row, rng) for row in rows for _ in range(copies)]
        blocks, starts, ends, is_last = (torch.tensor(column)[:, None] for column in zip(*picked, strict=True))
        at = blocks * self.block + torch.arange(self.block)  # [rows * copies, block]
        places = at.view(len(rows), -1)
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        ratio, whole = torch.rand(2, len(at), 1, generator=generator)
        noise = (torch.rand(at.shape, generator=generator) < ratio) | (whole < 0.35)
        behind = (at >= ends) & ~is_last
        answer = (at >= starts) & ~behind  # the EOS behind the last answer belongs to it
        masked = (answer & noise) | behind
        own = answer & (at <= ends)
        masked |= own & ~(masked & own).any(dim=1, keepdim=True)
        tail = torch.rand(at.shape, generator=generator) < TAIL_SHARE
        wanted = masked & (own | (answer & tail))
        said = F.pad(clean, (0, self.block), value=self.eos).gather(1, places)
        masked, wanted = masked.view(places.shape), wanted.view(places.shape)
        ids = torch.cat([clean, torch.where(masked, self.mask, said)], dim=1)
        targets = torch.cat([torch.full_like(clean, IGNORED), torch.where(wanted, said, IGNORED)], dim=1)
        positions = torch.cat([torch.arange(length).expand(clean.shape), places], dim=1)
        streams = torch.arange(1, copies + 1).repeat_interleave(self.block).expand(places.shape)
        streams = torch.cat([torch.zeros_like(clean), streams], dim=1)
        owners, clues = torch.full((2, *ids.shape), IGNORED)
        return Batch(ids, positions, targets, owners, clues, streams)

    def _copy(self, row: Row, rng: Random) -> tuple[int, int, int, bool]:
        """A block, the answer [start, end) whose part in it is noisy, and whether it is the last, which EOS follows."""
        assert self.block is not None
        start, end = row.answers[-1] if rng.random() < 0.5 else rng.choice(row.answers)
        is_last = end == len(row.ids)
        block = rng.randint(start // self.block, (end if is_last else end - 1) // self.block)
        return block, start, end, is_last


def _at(length: int, tokens: Sequence[Mapping[int, int]]) -> Tensor:
    """[rows, length] each row's tokens where they belong, IGNORED elsewhere."""
    filled = torch.full((len(tokens), length), IGNORED)
    for row, of_row in zip(filled, tokens, strict=True):
        for position, token in of_row.items():
            row[position] = token
    return filled


def seen(batch: Batch, block: int) -> Tensor:
    """bool [rows, length, length]: a token sees its own block in its stream, and the row's blocks before it."""
    assert batch.streams is not None
    blocks = batch.positions // block
    own = (blocks[:, :, None] == blocks[:, None]) & (batch.streams[:, :, None] == batch.streams[:, None])
    return own | ((batch.streams == 0)[:, None] & (blocks[:, None] < blocks[:, :, None]))


def _between(shares: tuple[float, float], progress: float) -> float:
    return shares[0] + (shares[1] - shares[0]) * progress
