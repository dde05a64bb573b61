"""Log-probabilities for requests that ask for them, of the model's own logits before any edit."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.core.arrays import Floats, Ids
from engine.core.params import MAX_LOGPROBS, SamplingParams
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Logprobs
from engine.kernels.transfer import Upload
from engine.scoring.top_tokens import top

LEAST = -9999.0
"""Replaces a log-probability that is not finite, as elsewhere in the field."""


class Extent(NamedTuple):
    """How many columns a step's `Reported.table` has of each kind."""

    num_named: int
    """Of `logprob_ids`: the longest."""
    num_top: int
    """The most probable tokens to find."""
    num_without: int = 0
    """Further proposals of each target (`Needs.without`)."""


def extent(plans: Sequence[StepPlan], num_without: int = 0) -> Extent | None:
    """The columns that the plans of a step need together; None if no request asks for log-probabilities.

    The number of most probable tokens is the same for all requests: it may decide which of equally probable tokens are
    found.
    """
    asking = [plan.request.sampling for plan in plans if _asks(plan)]
    if not asking:
        return None
    num_top = MAX_LOGPROBS if any(sampling.logprobs for sampling in asking) else 0
    return Extent(max(len(sampling.logprob_ids) for sampling in asking), num_top, num_without)


class Reported:
    """The targets whose plan asks for log-probabilities: their indices, and the ids they name, wait for the upload."""

    def __init__(self, plans: Sequence[StepPlan], extent: Extent, upload: Upload) -> None:
        """`extent`: of the whole step."""
        indices = np.flatnonzero(np.repeat([_asks(plan) for plan in plans], [len(plan.targets) for plan in plans]))
        self._indices = upload.add(indices)
        self._num_top = extent.num_top
        self._named = upload.add(_named(plans, extent.num_named)) if extent.num_named else None

    def unedited(self, logits: Tensor) -> Tensor:
        """What `table` takes: logits [targets of all plans, vocab] as the model gave them, before any edit."""
        # float32 logits will be edited in place, so they are copied; others are converted before any edit and stay.
        return logits[self._indices.tensor] if logits.dtype == torch.float32 else logits

    def table(self, unedited: Tensor, proposed: Tensor, mask_id: int | None) -> Tensor:
        """float64 [reported, proposals + named + 2 * some]: logprobs of the `proposed` tokens [all targets, proposals]
        and of the named ones, the best tokens' ids, their logprobs.
        """
        indices = self._indices.tensor
        logits = unedited if unedited.dtype == torch.float32 else unedited[indices].float()
        total = logits.logsumexp(dim=-1, keepdim=True)
        columns = [logits.gather(-1, proposed[indices]) - total]
        if self._named:
            columns.append(logits.gather(-1, self._named.tensor) - total)
        if num_top := min(self._num_top, logits.shape[-1] - 1):
            if mask_id is not None:
                logits[:, mask_id] = -torch.inf
            values, best = top(logits, num_top)
            columns += [best, values - total]
        return torch.cat([column.double() for column in columns], dim=-1)


def received(table: Floats, plans: Sequence[StepPlan], extent: Extent) -> list[Logprobs | None]:
    """Splits the rows of all plans' `Reported.table`, on the host, by plan; None for plans that did not ask."""
    finite = np.nan_to_num(table, nan=LEAST, posinf=LEAST, neginf=LEAST)
    lengths = [len(plan.targets) if _asks(plan) else 0 for plan in plans]
    parts = np.split(finite, np.cumsum(lengths)[:-1])
    return [_logprobs(part, plan.request.sampling, extent) for plan, part in zip(plans, parts, strict=True)]


def _logprobs(part: Floats, sampling: SamplingParams, extent: Extent) -> Logprobs | None:
    if sampling.logprobs is None:
        return None
    first_named = 1 + extent.num_without
    proposed, without, named, tops = np.split(part, (1, first_named, first_named + extent.num_named), axis=1)
    best, values = np.split(tops, 2, axis=1)
    own = named[:, : len(sampling.logprob_ids)]
    return Logprobs(proposed[:, 0], best.astype(np.int64), values, sampling.logprobs, own, without)


def _named(plans: Sequence[StepPlan], width: int) -> Ids:
    """int64 [reported, width] the ids that each target's request names, and 0 beyond them."""
    asking = [plan for plan in plans if _asks(plan)]
    rows = np.zeros((len(asking), width), np.int64)
    for row, plan in zip(rows, asking, strict=True):
        ids = plan.request.sampling.logprob_ids
        row[: len(ids)] = ids
    return np.repeat(rows, [len(plan.targets) for plan in asking], axis=0)


def _asks(plan: StepPlan) -> bool:
    return plan.request.sampling.logprobs is not None
