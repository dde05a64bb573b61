"""Reductions of something of each token to something of each class, on a device.

Every sum over a class has an order that only the constraint's vocabulary decides (`Constraint.groups`): by elementwise
additions, so that the batch does not change a bit of it. Knows classes, but neither requests nor steps.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from engine.core.constraint import GROUP, Constraint
from engine.kernels.transfer import to_devices
from engine.scoring.slices import TARGETS_AT_ONCE

SHARE = 4
"""Targets are reduced to classes in this many parts of a slice or more: a part holds several tensors of its logits."""
LEAST_AT_ONCE = 2**18
"""Entries of groups that are reduced at once however small the vocabulary is; some 15 MiB."""


class Tables:
    """`Constraint.groups` on a device."""

    def __init__(self, constraint: Constraint, device: torch.device) -> None:
        counts = np.bincount(constraint.classes, minlength=constraint.num_classes)
        owner = np.repeat(np.arange(constraint.num_classes, dtype=np.int32), np.maximum(-(-counts // GROUP), 1))
        arrays = (constraint.classes.astype(np.int32), owner, *constraint.groups)
        self._classes, self._owner, *self._tables = to_devices(arrays, device)
        self._last = len(constraint.classes) - 1

    @property
    def rows_at_once(self) -> int:
        """How many targets are reduced at once, in a part of the memory that scoring is given (`execution.budget`).

        Groups that are not full take memory, too.
        """
        entries = max(TARGETS_AT_ONCE * (self._last + 1) // SHARE, LEAST_AT_ONCE)
        return max(entries // self.members.numel(), 1)

    @property
    def classes(self) -> Tensor:
        """[vocab]"""
        return self._classes

    @property
    def members(self) -> Tensor:
        """[groups, `GROUP`] tokens of the first table."""
        return self._tables[0]

    def grouped(self, logits: Tensor) -> Tensor:
        """logits [targets, vocab] -> [targets, groups, `GROUP`], -inf where a group is not full."""
        return _gathered(logits, self.members, -torch.inf)

    def of_groups(self, values: Tensor) -> Tensor:
        """[targets, classes] -> [targets, groups, 1] the value of each group's class."""
        return values.index_select(1, self._owner)[..., None]

    def largest(self, grouped: Tensor) -> tuple[Tensor, Tensor]:
        """Of each class the largest value and its token, of equals the one with the lowest id: [targets, classes].

        An empty class has -inf, and a token of no meaning.
        """
        place = grouped.argmax(dim=-1, keepdim=True)
        values = grouped.gather(-1, place).squeeze(-1)
        tokens = self.members.long().expand(len(grouped), -1, -1).gather(-1, place).squeeze(-1).clamp(max=self._last)
        for table in self._tables[1:]:
            wider = _gathered(values, table, -torch.inf)
            place = wider.argmax(dim=-1, keepdim=True)
            values = wider.gather(-1, place).squeeze(-1)
            tokens = _gathered(tokens, table, 0).gather(-1, place).squeeze(-1)
        return values, tokens

    def total(self, grouped: Tensor) -> Tensor:
        """[targets, classes] sums of values [targets, groups, `GROUP`]."""
        values = _halved(grouped)
        for table in self._tables[1:]:
            values = _halved(_gathered(values, table, 0.0))
        return values


class TableStore:
    """The tables of the constraints that the last step asked for, on a device: the next step asks for most of them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tables: dict[Constraint, Tables] = {}

    def of(self, constraints: Iterable[Constraint]) -> Mapping[Constraint, Tables]:
        """Forgets all others."""
        asked = dict.fromkeys(constraints)
        self._tables = {one: self._tables.get(one) or Tables(one, self._device) for one in asked}
        return self._tables


def spread(logits: Tensor, tables: Tables, with_moment: bool) -> list[Tensor]:
    """Of each class [targets, classes]: its best logit, that token, the log-sum-exp of all but the best, and of all.

    With the moment, also its second best logit, and the sum of weights times their logarithms, relative to that logit,
    over all but the best.
    """
    grouped = tables.grouped(logits)
    best, token = tables.largest(grouped)
    others = grouped.masked_fill(tables.members == tables.of_groups(token), -torch.inf)
    second, _ = tables.largest(others)
    weights = (others - tables.of_groups(_finite(second))).exp_()
    rest = second + tables.total(weights).log()
    columns = [best, token, rest, torch.logaddexp(best, rest)]
    return [*columns, second, tables.total(torch.xlogy(weights, weights))] if with_moment else columns


def log_sum_exp(logits: Tensor, tables: Tables) -> Tensor:
    """[targets, classes] of logits [targets, vocab]."""
    grouped = tables.grouped(logits)
    best, _ = tables.largest(grouped)
    return best + tables.total((grouped - tables.of_groups(_finite(best))).exp_()).log()


def _finite(values: Tensor) -> Tensor:
    """0 in place of -inf, from which nothing can be taken off."""
    return values.masked_fill(values == -torch.inf, 0.0)


def _gathered(values: Tensor, table: Tensor, filling: float) -> Tensor:
    """values [targets, count] at a table's entries: [targets, groups, `GROUP`]; entries of `count` are the filling."""
    padded = torch.nn.functional.pad(values, (0, 1), value=filling)
    return padded.index_select(1, table.view(-1)).view(len(values), -1, GROUP)


def _halved(values: Tensor) -> Tensor:
    """Sums over the last dimension, of `GROUP` entries: always the same pairs."""
    while (width := values.shape[-1]) > 1:
        values = values[..., : width // 2] + values[..., width // 2 :]
    return values.squeeze(-1)
