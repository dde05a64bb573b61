"""Turns target logits into proposed tokens and confidences, with one transfer to the host for the whole batch.

Knows what policies need, not which they are: `engine.unmask.policies` decides what becomes of a proposal.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.core.arrays import Floats
from engine.core.requests.request import Request
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Needs, Proposals, Scores
from engine.kernels.transfer import Upload
from engine.scoring.columns import ScoredSlice
from engine.scoring.constrained.posterior import Constrained
from engine.scoring.constrained.tables import TableStore
from engine.scoring.edits import edits, is_edited
from engine.scoring.logprobs import extent, received
from engine.scoring.slices import Logits, Rows, owned_by, target_slices


class Launched(NamedTuple):
    """Columns on the device, each in slices of targets."""

    plain: Sequence[Sequence[Tensor]]
    """Tokens and log-odds of targets that are asked for nothing else."""
    others: Sequence[Sequence[Tensor]]
    """What `ScoredSlice` gives for all other targets."""
    importance: Sequence[Sequence[Tensor]]
    retention: Sequence[Sequence[Tensor]]
    classes: Sequence[Sequence[Tensor]]
    """What `ClassSlice` gives for constrained targets, slice by slice and group by group."""


class Scoring:
    """What a step asks of its targets' logits. Its arrays wait for the step's upload; then it launches and is read.

    A token's log-odds are its logit minus the float32 log-sum-exp of all other logits, which include the mask token's;
    the mask token is never chosen. Logits are the model's after the request's edits. Temperature, top_p, top_k and
    min_p only affect the choice, as in LLaDA's sampler. But where a plan needs `processed` scores, log-odds are of the
    distribution that these parameters leave, and where it needs a `vocabulary`, over that part of the vocabulary.
    """

    def __init__(
        self,
        plans: Sequence[StepPlan],
        mask_id: int | None,
        needs: Sequence[Needs],
        upload: Upload,
        tables: TableStore | None = None,
    ) -> None:
        """`needs` has what each plan's policy needs; `tables` are kept from step to step."""
        self._plans, self._mask_id, self._needs, self._device = plans, mask_id, needs, upload.device
        # Plain plans go apart: what a request's targets go through then depends on that request alone.
        self._is_plain = [_is_plain(plan, need) for plan, need in zip(plans, needs, strict=True)]
        counts = [len(plan.targets) for plan in plans]
        plain, others = owned_by(self._is_plain, counts), owned_by([not one for one in self._is_plain], counts)
        self._num_plain = len(plain)
        self._plain, self._others = (Rows(some, sum(counts), upload) for some in (plain, others))
        asking = [number for number, is_plain in enumerate(self._is_plain) if not is_plain]
        asked, its_needs = [plans[number] for number in asking], [needs[number] for number in asking]
        self._num_without = max((len(need.without) for need in its_needs), default=0)
        self._extent, changes = extent(asked, self._num_without), edits(asked)
        self._with_entropy = any(need.entropy or need.margin or need.samples for need in its_needs)
        self._constrained = Constrained(plans, needs, mask_id, upload, tables or TableStore(upload.device))
        self._slices = [
            ScoredSlice(
                targets,
                changes,
                self._extent,
                self._with_entropy,
                self._num_without,
                self._constrained.slice(targets),
                upload,
            )
            for targets in target_slices(asked, its_needs)
        ]

    def launch(self, logits: Logits, importance: Sequence[Tensor] = (), retention: Sequence[Tensor] = ()) -> "Launched":
        """logits [targets of all plans, vocab] -> their scores on the device, which may not be computed yet.

        `importance` has a tensor [visible end] for each plan that asks for the rollout; they are only moved to the host
        with the rest.
        """
        plain, others = list(self._proposals(logits)), list(self._columns(logits))
        launched = Launched(
            [*zip(*plain, strict=True)],
            [*zip(*(columns for columns, _ in others), strict=True)],
            [[one] for one in importance],
            [[one] for one in retention],
            [[one] for _, reduced in others for one in reduced],
        )
        self._constrained.lay_out()
        return launched

    def read(self, launched: "Launched") -> list[Scores]:
        """One `Scores` for each plan. Waits for the device."""
        columns = [column for group in launched for column in group]
        # Without any target, a number of no meaning: the step still ends when the device has computed it.
        host = _to_host(columns or [[torch.zeros(1, device=self._device)]])
        ends = np.cumsum([len(group) for group in launched]).tolist()
        plain, others, importance, retention, classes = (host[slice(*ends)] for ends in itertools.pairwise((0, *ends)))
        scores = list(self._split(plain, others, importance, retention))
        return self._constrained.applied(scores, self._class_columns(classes))

    def _class_columns(self, classes: Sequence[Floats]) -> Iterator[tuple[Request, dict[str, Floats]]]:
        """The columns of each constrained request's targets, slice by slice."""
        groups = iter(classes)
        for one in self._slices:
            if one.classes:
                yield from one.classes.split(itertools.islice(groups, one.classes.num_groups))

    def _proposals(self, logits: Logits) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens and log-odds of the plain plans' targets, slice by slice."""
        if self._num_plain:
            own = self._plain.part(logits)
            for first in range(0, self._num_plain, own.proposed_at_once):
                some = slice(first, min(first + own.proposed_at_once, self._num_plain))
                yield own.propose(some, self._mask_id)

    def _columns(self, logits: Logits) -> Iterator[tuple[Sequence[Tensor], Sequence[Tensor]]]:
        """What `ScoredSlice` gives for all other targets, slice by slice."""
        if self._slices:
            own = self._others.part(logits)
            for one in self._slices:
                yield one(own, self._mask_id)

    def _split(
        self,
        plain: Sequence[Floats],
        others: Sequence[Floats],
        rollouts: Sequence[Floats],
        retentions: Sequence[Floats],
    ) -> Iterator[Scores]:
        """The columns on the host -> each plan's scores."""
        columns, importance, retention = list(others), iter(rollouts), iter(retentions)
        asked = [plan for plan, is_plain in zip(self._plans, self._is_plain, strict=True) if not is_plain]
        logprobs = iter(received(columns.pop(), asked, self._extent) if self._extent else [None] * len(asked))
        further = columns.pop() if self._num_without and asked else None
        firsts = {True: 0, False: 0}
        for plan, need, is_plain in zip(self._plans, self._needs, self._is_plain, strict=True):
            worth = next(retention) if plan.eviction and plan.eviction.weight is not None else None
            if not len(plan.targets):
                yield Scores(plan.targets, plan.targets, np.empty(0), retention=worth)
                continue
            first = firsts[is_plain]
            some = slice(first, first + len(plan.targets))
            firsts[is_plain] = some.stop
            tokens, *spread, log_odds = (column[some] for column in (plain if is_plain else columns))
            entropy, margin, *samples = spread or (None, None)
            yield Scores(
                plan.targets,
                tokens.astype(np.int64),
                log_odds,
                entropy if need.entropy else None,
                margin if need.margin else None,
                next(importance) if plan.rollout else None,
                worth,
                None if is_plain else next(logprobs),
                samples=samples[0].astype(np.int64) if samples and need.samples else None,
                without=() if further is None else _proposals(further[some], len(need.without)),
            )


def _proposals(table: Floats, count: int) -> tuple[Proposals, ...]:
    """`Without.proposals` of one plan, tokens beside their log-odds -> the first `count` of them."""
    tokens, odds = np.split(table, 2, axis=1)
    return tuple(Proposals(tokens[:, number].astype(np.int64), odds[:, number]) for number in range(count))


def _is_plain(plan: StepPlan, need: Needs) -> bool:
    """Whether the best tokens and their log-odds are all that is asked of the plan's logits, if anything is."""
    sampling = plan.request.sampling
    if not len(plan.targets):
        return True
    if sampling.constraint is not None:
        return False
    return need == Needs() and not sampling.temperature and sampling.logprobs is None and not is_edited(sampling)


def _to_host(columns: Sequence[Sequence[Tensor]]) -> list[Floats]:
    """Joins each column's slices into one host array. The step's only device synchronisation.

    float64 holds every token id and every float32 exactly.
    """
    host = torch.cat([tensor.double().flatten() for column in columns for tensor in column]).cpu().numpy()
    arrays, start = [], 0
    for column in columns:
        end = start + sum(tensor.numel() for tensor in column)
        arrays.append(host[start:end].reshape(-1, *column[0].shape[1:]))
        start = end
    return arrays
