"""What the logits of constrained targets say of each class of tokens, a slice at a time.

Knows what a step asks of each request's classes and which rows are whose, but nothing of states. `tables` has the
reductions. Log-probabilities of the whole vocabulary are torch's, to rounding.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.core.arrays import Floats, Ids, Mask
from engine.core.constraint import Constraint
from engine.core.requests.request import Request
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Needs
from engine.kernels.transfer import Upload
from engine.scoring.constrained.tables import Tables, log_sum_exp, spread
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
from engine.scoring.slices import Rows, TargetSlice

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

    def reduced(self, logits: Tensor, unedited: Sequence[Tensor | None], mask_id: int | None) -> list[Tensor]:
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

    def reduced(self, logits: Tensor, unedited: Tensor | None, mask_id: int | None) -> Tensor:
        edited, at_once = self.rows.of(logits), self._tables.rows_at_once
        parts = [
            self._reduced(edited, unedited, mask_id, slice(first, first + at_once))
            for first in range(0, len(edited), at_once)
        ]
        return torch.cat(parts, dim=1)

    def _reduced(self, edited: Tensor, unedited: Tensor | None, mask_id: int | None, some: slice) -> Tensor:
        """[columns, some, classes] of some of the group's rows."""
        drawing: Fields = self._drawing.of(some) if self._drawing else {}
        narrowed = self._narrowed(edited[some], some)
        scored = divide_by_temperature(narrowed, drawing) if self.style.is_processed else edited[some]
        columns = spread(scored, self._tables, self.style.has_spread)
        candidates = columns[1]
        if self.style.is_drawn:
            perturbed = self._tables.grouped(noisy(narrowed, drawing, mask_id))
            value, candidates = self._tables.largest(perturbed)
            del perturbed
            columns += [value, candidates, scored.gather(-1, candidates)]
            if self.style.is_tempered:
                columns.append(log_sum_exp(divide_by_temperature(narrowed, drawing), self._tables))
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
