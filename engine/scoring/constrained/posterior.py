"""From what logits say of classes to proposals that are parts of one valid answer, and how sure the model is of them.

Each proposal's scores are of its posterior: of the model's distribution at its position, given that the answer is of
the constraint's language and ends in time. So any of the proposals may become tokens. (With `guidance: model` scores
are of the model's own distribution.) Knows the columns of `classes` on the host, and the chain that ties positions
together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.core.arrays import Floats, Ids
from engine.core.requests.request import Request
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Needs, Scores
from engine.kernels.transfer import Upload
from engine.scoring.constrained.chain import Chain, Draw
from engine.scoring.constrained.classes import Asked, ClassSlice, Style
from engine.scoring.constrained.native import chain_of, log_sum_exp
from engine.scoring.constrained.spans import OpenSpan
from engine.scoring.constrained.tables import TableStore
from engine.scoring.slices import TargetSlice

Number = TypeVar("Number", np.int64, np.float64)
ClassColumns = dict[str, Floats]
"""Of one request's scored targets, by the names of `Style.columns`: [rows, classes]."""


class Constrained:
    """The constrained plans of a step."""

    def __init__(
        self, plans: Sequence[StepPlan], needs: Sequence[Needs], mask_id: int | None, upload: Upload, tables: TableStore
    ) -> None:
        """`plans` are all of the step, whether they have a constraint or not."""
        self._mask_id, self._upload = mask_id, upload
        self._members: dict[int, _Member] = {}
        """By the number of their plan."""
        for number, (plan, need) in enumerate(zip(plans, needs, strict=True)):
            if plan.request.constraint is not None and len(plan.targets) and (span := OpenSpan.of(plan)).num_rows:
                self._members[number] = _Member(plan, need, span)
        self._asked = {one.plan.request: one.asked() for one in self._members.values()}
        self._tables = tables.of([one.constraint for one in self._asked.values()])

    def slice(self, targets: TargetSlice) -> ClassSlice | None:
        """The constrained targets of a slice, or None if the step has none."""
        if not self._asked:
            return None
        return ClassSlice(targets, self._asked, self._tables, self._upload)

    def lay_out(self) -> None:
        """What the chains need beside logits; the device may compute meanwhile."""
        for one in self._members.values():
            one.chain  # noqa: B018 - it is kept

    def applied(self, scores: Sequence[Scores], parts: Iterable[tuple[Request, ClassColumns]]) -> list[Scores]:
        """The scores [plans] of all plans of the step, those of constrained ones anew.

        `parts` have the columns of a request's targets, in order; a request may have several.
        """
        after = list(scores)
        found: dict[Request, list[ClassColumns]] = {request: [] for request in self._asked}
        for request, columns in parts:
            found[request].append(columns)
        with np.errstate(divide="ignore", invalid="ignore"):
            for number, one in self._members.items():
                if one.chain.is_possible:
                    after[number] = one.scores(scores[number], _joined(found[one.plan.request]), self._mask_id)
                else:
                    after[number] = replace(scores[number], is_possible=False)
        return after


class _Member:
    """One constrained plan of a step."""

    def __init__(self, plan: StepPlan, need: Needs, span: OpenSpan) -> None:
        self.plan, self.need, self.span, self.style = plan, need, span, Style.of(plan, need)

    @cached_property
    def chain(self) -> Chain:
        return chain_of(self.span)

    def asked(self) -> Asked:
        allowed = self.chain.allowed() if self.style.is_narrowed else None
        return Asked(self.span.constraint, self.style, self.plan.targets[: self.span.num_rows], allowed)

    def scores(self, before: Scores, columns: ClassColumns, mask_id: int | None) -> Scores:
        """In place of those `before`, which know of no constraint. NaN where the logits were not numbers."""
        if _is_broken(columns):
            return replace(before, log_odds=np.full_like(before.log_odds, np.nan))
        after = _replaced(before, self._posterior(columns, mask_id), self.need)
        return replace(before, valid=after) if self._is_model else after

    @property
    def _is_model(self) -> bool:
        return self.plan.request.diffusion.guidance == "model"

    def _posterior(self, columns: ClassColumns, mask_id: int | None) -> "Posterior":
        """Of tokens along the best way, or along one that is drawn. No gains where scores are to be the model's own."""
        chain, sampling = self.chain, self.plan.request.sampling
        draw = Draw(sampling.temperature, sampling.seed, self.plan.request.decoding_steps)
        gains, behind = np.zeros_like(columns["total"]), None
        if not self._is_model:
            gains, behind = chain.gains(columns["total"])
        if not self.style.is_drawn:
            behind = chain.behind(columns["best"], is_best=True)
        elif self.style.is_tempered or behind is None:
            behind = chain.behind(columns["tempered" if self.style.is_tempered else "total"], is_best=False)
        classes = chain.walk(columns["noisy" if self.style.is_drawn else "best"], behind, draw)
        return Posterior(columns, classes, gains, mask_id)


class Posterior:
    """The distributions of one request's scored targets, each a model's distribution with gains of its classes."""

    def __init__(self, columns: ClassColumns, classes: Ids, gains: Floats, mask_id: int | None) -> None:
        """`classes` [rows] of the proposed tokens, `gains` [rows, classes] in logarithms."""
        self._columns, self._gains, self._mask_id = columns, gains, mask_id
        self._rows = np.arange(len(classes))
        self._at = self._rows * gains.shape[1] + classes

    @cached_property
    def tokens(self) -> Ids:
        """[rows] the proposed tokens."""
        return self._proposed("drawn" if "drawn" in self._columns else "token").astype(np.int64)

    @property
    def logprobs(self) -> Floats:
        """[rows] what the model itself says of the proposed tokens."""
        return self._proposed("logprob")

    @property
    def log_odds(self) -> Floats:
        """[rows] of the proposed tokens: what they weigh against all others, which are summed without them."""
        total, gain = self._columns["total"], self._gains.take(self._at)
        logit = self._proposed("drawn_logit" if "drawn" in self._columns else "best")
        is_best = self.tokens == self._proposed("token")
        without = np.where(is_best, self._proposed("rest"), _less(total.take(self._at), logit))
        others = total + self._gains
        others.put(self._at, without + gain)
        return np.asarray(logit + gain - log_sum_exp(others))

    @cached_property
    def _best(self) -> Floats:
        """[rows, classes]"""
        return np.asarray(self._columns["best"] + self._gains)

    @property
    def entropy(self) -> Floats:
        """[rows] in nats. Terms are relative to the best token, and of one sign."""
        top = self._best.max(axis=1, keepdims=True)
        others, _ = self._others(top)
        shift = self._columns["second"] + self._gains - top
        inside, rest = np.exp(shift), np.exp(self._columns["rest"] + self._gains - top)
        with_shift = np.where(inside > 0, inside * self._columns["moment"] + shift * rest, 0.0)
        best = np.exp(self._best - top)
        of_best = np.where(best > 0, best * (self._best - top), 0.0)
        return np.asarray(np.log1p(others) - (with_shift.sum(axis=1) + of_best.sum(axis=1)) / (1.0 + others))

    @property
    def margin(self) -> Floats:
        """[rows] how much more probable the best token is than the second best; negative where the best is the mask."""
        top = self._best.max(axis=1, keepdims=True)
        others, leader = self._others(top)
        runners = np.concatenate((self._best, self._columns["second"] + self._gains), axis=1)
        runners[self._rows, leader] = -np.inf
        lead = -np.expm1(runners.max(axis=1) - top[:, 0]) / (1.0 + others)
        return np.asarray(np.where(self._columns["token"][self._rows, leader] == self._mask_id, -lead, lead))

    def _others(self, top: Floats) -> tuple[Floats, Ids]:
        """[rows] what all tokens but the best one weigh beside it, and the class of the best one."""
        leader = self._best.argmax(axis=1)
        weights = np.exp(self._best - top)
        weights[self._rows, leader] = 0.0
        inside = np.exp(self._columns["rest"] + self._gains - top)
        return weights.sum(axis=1) + inside.sum(axis=1), leader

    def _proposed(self, name: str) -> Floats:
        return np.asarray(self._columns[name].take(self._at))


def _replaced(scores: Scores, posterior: Posterior, need: Needs) -> Scores:
    """The scores with what the posterior says of the first targets: those that the constraint ties together."""
    entropy = posterior.entropy if need.entropy or need.by_entropy else None
    log_odds = -np.log(entropy) if need.by_entropy and entropy is not None else posterior.log_odds
    logprobs = scores.logprobs
    if logprobs is not None:
        logprobs = replace(logprobs, proposed=_over(logprobs.proposed, posterior.logprobs))
    return replace(
        scores,
        tokens=_over(scores.tokens, posterior.tokens),
        log_odds=_over(scores.log_odds, log_odds),
        entropy=None if scores.entropy is None or entropy is None else _over(scores.entropy, entropy),
        margin=None if scores.margin is None else _over(scores.margin, posterior.margin),
        logprobs=logprobs,
    )


def _over(values: NDArray[Number], first: NDArray[Number]) -> NDArray[Number]:
    """The values, the first ones replaced."""
    return np.concatenate((first, values[len(first) :]))


def _joined(parts: Sequence[ClassColumns]) -> ClassColumns:
    return parts[0] if len(parts) == 1 else {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}


def _is_broken(columns: Mapping[str, Floats]) -> bool:
    """Whether the logits were not numbers, or infinite. A maximum is NaN if any value is."""
    return not all(values.max() < np.inf for values in columns.values())


def _less(total: Floats, logit: Floats) -> Floats:
    """log(exp(total) - exp(logit)), for a logit that is no more than half of it."""
    return total + np.log1p(-np.exp(np.minimum(logit - total, 0.0)))
