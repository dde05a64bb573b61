"""From what logits say of classes to proposals that are parts of one valid answer, and how sure the model is of them.

Each proposal's scores are of its posterior: of the model's distribution at its position, given that the answer is of
the constraint's language and ends in time. So any of the proposals may become tokens. (With `guidance: model` scores
are of the model's own distribution.) Knows the columns of `engine.scoring.classes` on the host, and the chain
(`engine.scoring.chain`) that ties positions together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.core.plan import Needs, Scores, StepPlan
from engine.core.request import Floats, Ids, Request
from engine.kernels.transfer import Upload
from engine.scoring.chain import Chain, Draw
from engine.scoring.classes import Asked, ClassSlice, Style, Tables
from engine.scoring.reach import OpenSpan, Reach
from engine.scoring.slices import TargetSlice

Number = TypeVar("Number", np.int64, np.float64)
ClassColumns = dict[str, Floats]
"""Of one request's scored targets, by the names of `Style.columns`: [rows, classes]."""


class Constrained:
    """The constrained plans of a step."""

    def __init__(self, plans: Sequence[StepPlan], needs: Sequence[Needs], upload: Upload) -> None:
        """`plans` are of the step, whether they have a constraint or not."""
        self._upload = upload
        self._plans: list[StepPlan] = []
        self._needs: list[Needs] = []
        spans = []
        for plan, need in zip(plans, needs, strict=True):
            if plan.request.constraint is not None and len(plan.targets) and (span := OpenSpan.of(plan)).num_rows:
                self._plans.append(plan)
                self._needs.append(need)
                spans.append(span)
        self._reach = Reach(spans) if spans else None
        self.asked = dict(self._asked(self._reach)) if self._reach else {}
        """What each request asks of its classes."""
        self._tables = {one.constraint: Tables(one.constraint, upload) for one in self.asked.values()}
        self._chain: Chain | None = None

    def slice(self, targets: TargetSlice) -> ClassSlice | None:
        """The constrained targets of a slice, or None if the step has none."""
        if not self.asked:
            return None
        return ClassSlice(targets, self.asked, self._tables, self._upload)

    def lay_out(self) -> None:
        """What the chain needs beside logits; the device may compute meanwhile."""
        if self._reach:
            self._chain = Chain(self._reach)

    def applied(self, scores: Sequence[Scores], parts: Iterable[tuple[Request, ClassColumns]]) -> list[Scores]:
        """The scores [plans] of all plans of the step, those of constrained ones anew.

        `parts` have the columns of a request's targets, in order; a request may have several.
        """
        if self._chain is None:
            return list(scores)
        found: dict[Request, list[ClassColumns]] = {plan.request: [] for plan in self._plans}
        for request, columns in parts:
            found[request].append(columns)
        with np.errstate(divide="ignore", invalid="ignore"):
            valid = self._valid([_joined(found[plan.request]) for plan in self._plans], scores)
        return [valid.get(id(one), one) for one in scores]

    def _asked(self, reach: Reach) -> Iterable[tuple[Request, Asked]]:
        for number, (plan, need, span) in enumerate(zip(self._plans, self._needs, reach.spans, strict=True)):
            style = Style.of(plan, need)
            allowed = reach.allowed(number) if style.is_narrowed else None
            yield plan.request, Asked(span.constraint, style, plan.targets[: span.num_rows], allowed)

    def _valid(self, columns: Sequence[ClassColumns], scores: Sequence[Scores]) -> dict[int, Scores]:
        """By the identity of a plan's scores: what takes their place."""
        is_broken = [_is_broken(one) for one in columns]
        columns = [
            {name: np.zeros_like(values) for name, values in one.items()} if broken else one
            for one, broken in zip(columns, is_broken, strict=True)
        ]
        chosen, gains = self._chosen(columns), self._gains(columns)
        by_positions = {id(one.positions): one for one in scores}
        valid = {}
        for plan, need, one, classes, gain, broken in zip(
            self._plans, self._needs, columns, chosen, gains, is_broken, strict=True
        ):
            before = by_positions[id(plan.targets)]
            after = _replaced(before, Posterior(one, classes, gain), need)
            if broken:
                after = replace(after, log_odds=np.full_like(after.log_odds, np.nan))
            is_posterior = plan.request.diffusion.guidance == "posterior" or broken
            valid[id(before)] = after if is_posterior else replace(before, valid=after)
        return valid

    def _chosen(self, columns: Sequence[ClassColumns]) -> list[Ids]:
        """[rows] of each plan: the classes of the proposed tokens, along the best way or a drawn one."""
        assert self._chain
        draws = [
            Draw(plan.request.sampling.temperature, plan.request.sampling.seed, plan.request.decoding_steps)
            for plan in self._plans
        ]
        is_best = np.array([not draw.temperature for draw in draws])
        weights = _raveled(["best" if best else "tempered" for best in is_best], columns)
        candidates = weights if is_best.all() else _raveled(["best" if best else "noisy" for best in is_best], columns)
        behind = self._chain.behind(self._chain.of_labels(weights, is_best), is_best)
        return self._chain.walk(candidates, behind, draws)

    def _gains(self, columns: Sequence[ClassColumns]) -> list[Floats]:
        """[rows, classes] of each plan; nothing where its scores are to be the model's own."""
        assert self._chain
        none = [np.zeros_like(one["best"]) for one in columns]
        is_model = [plan.request.diffusion.guidance == "model" for plan in self._plans]
        if all(is_model):
            return none
        are_sums = np.zeros(len(columns), np.bool_)
        values = self._chain.of_labels(_raveled(["total"] * len(columns), columns), are_sums)
        gains = np.split(
            self._chain.gains(values, self._chain.behind(values, are_sums)), self._chain.column_starts[1:-1]
        )
        return [
            zeros if model else gain.reshape(zeros.shape)
            for zeros, model, gain in zip(none, is_model, gains, strict=True)
        ]


class Posterior:
    """The distributions of one request's scored targets, each a model's distribution with gains of its classes."""

    def __init__(self, columns: ClassColumns, classes: Ids, gains: Floats) -> None:
        """`classes` [rows] of the proposed tokens, `gains` [rows, classes] in logarithms."""
        self._columns, self._classes, self._gains = columns, classes, gains
        self._rows = np.arange(len(classes))
        self._best = columns["best"] + gains

    @property
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
        total = self._columns["total"]
        logit = self._proposed("drawn_logit" if "drawn" in self._columns else "best")
        of_class = total[self._rows, self._classes]
        is_best = self.tokens == self._proposed("token")
        without = np.where(is_best, self._proposed("rest"), _less(of_class, logit))
        others = total + self._gains
        gain = self._gains[self._rows, self._classes]
        others[self._rows, self._classes] = without + gain
        return logit + gain - _log_sum_exp(others)

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
        """[rows] how much more probable the best token is than the second best."""
        top = self._best.max(axis=1, keepdims=True)
        others, leader = self._others(top)
        runners = np.concatenate((self._best, self._columns["second"] + self._gains), axis=1)
        runners[self._rows, leader] = -np.inf
        return np.asarray(-np.expm1(runners.max(axis=1) - top[:, 0]) / (1.0 + others))

    def _others(self, top: Floats) -> tuple[Floats, Ids]:
        """[rows] what all tokens but the best one weigh beside it, and the class of the best one."""
        leader = self._best.argmax(axis=1)
        weights = np.exp(self._best - top)
        weights[self._rows, leader] = 0.0
        inside = np.exp(self._columns["rest"] + self._gains - top)
        return weights.sum(axis=1) + inside.sum(axis=1), leader

    def _proposed(self, name: str) -> Floats:
        return self._columns[name][self._rows, self._classes]


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
    """Whether the logits were not numbers, or infinite."""
    return any(bool(np.isnan(values).any() or np.isposinf(values).any()) for values in columns.values())


def _less(total: Floats, logit: Floats) -> Floats:
    """log(exp(total) - exp(logit)), for a logit that is no more than half of it."""
    return total + np.log1p(-np.exp(np.minimum(logit - total, 0.0)))


def _log_sum_exp(values: Floats) -> Floats:
    """[rows] of values [rows, columns]; -inf where all are."""
    most = np.maximum(values.max(axis=1), -1e300)
    return np.asarray(most + np.log(np.exp(values - most[:, None]).sum(axis=1)))


def _raveled(names: Sequence[str], columns: Sequence[ClassColumns]) -> Floats:
    """The named column of each request, side by side."""
    return np.concatenate([one[name].reshape(-1) for name, one in zip(names, columns, strict=True)])
