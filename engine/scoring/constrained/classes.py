"""What the logits of constrained targets say of each class of tokens: reductions on the device, a slice at a time.

Every sum over a class has an order that only the constraint's vocabulary decides (`Constraint.groups`): by elementwise
additions, so that the batch does not change a bit of it. Log-probabilities of the whole vocabulary are torch's, to
rounding. Knows classes, and nothing of states.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.core.constraint import GROUP, Constraint
from engine.core.plan import Needs, StepPlan
from engine.core.request import Floats, Ids, Mask, Request
from engine.kernels.transfer import Upload, to_devices
from engine.scoring.sampling import (
    DRAWING,
    NARROWING,
    Columns,
    Fields,
    divide_by_temperature,
    narrow,
    noisy,
    parameters,
)
from engine.scoring.slices import TARGETS_AT_ONCE, Rows, TargetSlice

SHARE = 4
"""Targets are reduced to classes in this many parts of a slice or more: a part holds several tensors of its logits."""
LEAST_AT_ONCE = 2**18
"""Entries of groups that are reduced at once however small the vocabulary is; some 15 MiB."""
CUT = 1e4
"""Taken off logits that `top_p`, `top_k` and `min_p` exclude: these tokens are drawn only if nothing else is valid."""


class Style(NamedTuple):
    """What is asked of a request's classes."""

    is_drawn: bool
    is_narrowed: bool
    """Whether `top_p`, `top_k` or `min_p` change the draw or the scores."""
    is_processed: bool
    """Whether scores are of the distribution that tokens are drawn from."""
    has_spread: bool
    """Whether entropies or margins are needed."""
    is_reported: bool
    """Whether log-probabilities are."""
    is_tempered: bool
    """Whether tokens are drawn from another distribution than the one that is scored."""

    @classmethod
    def of(cls, plan: StepPlan, need: Needs) -> "Style":
        sampling = plan.request.sampling
        is_drawn = sampling.temperature > 0
        narrows = sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0
        is_processed = need.processed and (is_drawn or narrows)
        return cls(
            is_drawn=is_drawn,
            is_narrowed=narrows and (is_drawn or need.processed),
            is_processed=is_processed,
            has_spread=need.entropy or need.margin or need.by_entropy,
            is_reported=sampling.logprobs is not None,
            is_tempered=is_drawn and not is_processed and (narrows or sampling.temperature != 1),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that `ClassSlice` gives, in order."""
        drawn = ("noisy", "drawn", "drawn_logit") if self.is_drawn else ()
        tempered = ("tempered",) if self.is_tempered else ()
        spread = ("second", "moment") if self.has_spread else ()
        return (
            "best",
            "token",
            "rest",
            "total",
            *spread,
            *drawn,
            *tempered,
            *(("logprob",) if self.is_reported else ()),
        )


class Asked(NamedTuple):
    """What a step asks of one request's classes."""

    constraint: Constraint
    style: Style
    targets: Ids
    """[rows] the targets that the constraint ties together: the plan's first ones."""
    allowed: Mask | None
    """bool [rows, classes] which may stand there, for `top_p`, `top_k` and `min_p`."""


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


class ClassSlice:
    """The constrained targets of one slice, in groups that share a constraint and a style."""

    def __init__(
        self,
        targets: TargetSlice,
        asked: Mapping[Request, Asked],
        tables: Mapping[Constraint, Tables],
        upload: Upload,
    ) -> None:
        """`asked` and `tables` are of the whole step."""
        members: dict[tuple[Constraint, Style], list[_Part]] = {}
        starts = np.cumsum([0, *(len(plan.targets) for plan in targets.plans)]).tolist()
        for plan, start in zip(targets.plans, starts, strict=False):
            one = asked.get(plan.request)
            if one is None:
                continue
            rows = np.searchsorted(one.targets, plan.targets)
            rows = rows[rows < len(one.targets)]
            if len(rows):
                members.setdefault((one.constraint, one.style), []).append(_Part(plan, start, rows, one))
        total = int(starts[-1])
        self._groups = [
            _Group(parts, style, tables[constraint], total, upload) for (constraint, style), parts in members.items()
        ]

    def unedited(self, logits: Tensor) -> list[Tensor | None]:
        """What `reduced` takes: logits [targets, vocab] as the model gave them, before any edit."""
        return [group.rows.of(logits).float().clone() if group.style.is_reported else None for group in self._groups]

    def reduced(self, logits: Tensor, unedited: Sequence[Tensor | None], mask_id: int) -> list[Tensor]:
        """logits [targets, vocab] float32, edited -> for each group float64 [columns, its targets, classes]."""
        return [group.reduced(logits, raw, mask_id) for group, raw in zip(self._groups, unedited, strict=True)]

    def split(self, columns: Iterable[Floats]) -> Iterable[tuple[Request, dict[str, Floats]]]:
        """What `reduced` gave, on the host -> each request's columns [its targets here, classes], by name."""
        for group, values in zip(self._groups, columns, strict=True):
            yield from group.split(values)

    @property
    def num_groups(self) -> int:
        return len(self._groups)


class _Part(NamedTuple):
    plan: StepPlan
    start: int
    """Index of the plan's first target in the slice."""
    rows: Ids
    """Which of the request's rows are here, ascending: the plan's first targets."""
    asked: Asked


class _Group:
    def __init__(self, parts: Sequence[_Part], style: Style, tables: Tables, total: int, upload: Upload) -> None:
        self._parts, self.style, self._tables = parts, style, tables
        self.rows = Rows(np.concatenate([part.start + np.arange(len(part.rows)) for part in parts]), total, upload)
        trimmed = np.concatenate([np.arange(len(part.plan.targets)) < len(part.rows) for part in parts])
        rows = parameters([part.plan for part in parts])[trimmed]
        self._drawing = Columns(rows, DRAWING, upload) if style.is_drawn or style.is_processed else None
        self._narrowing = self._allowed = None
        if style.is_narrowed:
            self._narrowing = Columns(rows, NARROWING, upload)
            masks = [part.asked.allowed[part.rows] for part in parts if part.asked.allowed is not None]
            self._allowed = upload.add(np.concatenate(masks))

    def split(self, values: Floats) -> Iterable[tuple[Request, dict[str, Floats]]]:
        first = 0
        for part in self._parts:
            own = values[:, first : first + len(part.rows)]
            first += len(part.rows)
            yield part.plan.request, dict(zip(self.style.columns, own, strict=True))

    def reduced(self, logits: Tensor, unedited: Tensor | None, mask_id: int) -> Tensor:
        edited, at_once = self.rows.of(logits), self._tables.rows_at_once
        parts = [
            self._reduced(edited, unedited, mask_id, slice(first, first + at_once))
            for first in range(0, len(edited), at_once)
        ]
        return torch.cat(parts, dim=1)

    def _reduced(self, edited: Tensor, unedited: Tensor | None, mask_id: int, some: slice) -> Tensor:
        """[columns, some, classes] of some of the group's rows."""
        drawing: Fields = self._drawing.of(some) if self._drawing else {}
        narrowed = self._narrowed(edited[some], some)
        scored = divide_by_temperature(narrowed, drawing) if self.style.is_processed else edited[some]
        columns = _spread(scored, self._tables, self.style.has_spread)
        candidates = columns[1]
        if self.style.is_drawn:
            perturbed = self._tables.grouped(noisy(narrowed, drawing, mask_id))
            value, candidates = self._tables.largest(perturbed)
            del perturbed
            columns += [value, candidates, scored.gather(-1, candidates)]
            if self.style.is_tempered:
                columns.append(_log_sum_exp(divide_by_temperature(narrowed, drawing), self._tables))
        if unedited is not None:
            own = unedited[some]
            columns.append(own.gather(-1, candidates) - own.logsumexp(dim=-1, keepdim=True))
        return torch.stack([column.double() for column in columns])

    def _narrowed(self, logits: Tensor, some: slice) -> Tensor:
        """The logits, less `CUT` where the request's parameters exclude a token among those that may stand there."""
        if self._narrowing is None or self._allowed is None:
            return logits
        may_stand = self._allowed.tensor[some].index_select(1, self._tables.classes)
        possible = logits.masked_fill(~may_stand, -torch.inf)
        kept = narrow(possible, self._narrowing.of(some), possible.argmax(dim=-1))
        return torch.where(kept == -torch.inf, logits - CUT, logits)


def _spread(logits: Tensor, tables: Tables, with_moment: bool) -> list[Tensor]:
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


def _log_sum_exp(logits: Tensor, tables: Tables) -> Tensor:
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
