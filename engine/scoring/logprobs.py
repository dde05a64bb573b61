"""Log-probabilities for requests that ask for them, of the model's own logits before any edit."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.core.params import MAX_LOGPROBS
from engine.core.plan import Logprobs, StepPlan
from engine.core.request import Floats
from engine.kernels.transfer import Upload
from engine.scoring.top_tokens import top

LEAST = -9999.0
"""Replaces a log-probability that is not finite, as elsewhere in the field."""


def num_reported(plans: Sequence[StepPlan]) -> int | None:
    """How many of the most probable tokens to find; None if no request asks for log-probabilities.

    The number is the same for all requests: it may decide which of equally probable tokens are found.
    """
    counts = [plan.request.sampling.logprobs for plan in plans]
    if not any(count is not None for count in counts):
        return None
    return MAX_LOGPROBS if any(counts) else 0


class Reported:
    """The targets whose plan asks for log-probabilities: their indices wait for the upload."""

    def __init__(self, plans: Sequence[StepPlan], num_top: int, upload: Upload) -> None:
        indices = np.flatnonzero(np.repeat([_asks(plan) for plan in plans], [len(plan.targets) for plan in plans]))
        self._indices = upload.add(indices)
        self._num_top = num_top

    def unedited(self, logits: Tensor) -> Tensor:
        """What `table` takes: logits [targets of all plans, vocab] as the model gave them, before any edit."""
        # float32 logits will be edited in place, so they are copied; others are converted before any edit and stay.
        return logits[self._indices.tensor] if logits.dtype == torch.float32 else logits

    def table(self, unedited: Tensor, tokens: Tensor, mask_id: int) -> Tensor:
        """float64 [reported, 1 + 2 * some]: proposed `tokens`' [all targets] logprobs, best ids, their logprobs."""
        indices = self._indices.tensor
        logits = unedited if unedited.dtype == torch.float32 else unedited[indices].float()
        total = logits.logsumexp(dim=-1, keepdim=True)
        columns = [logits.gather(-1, tokens[indices][:, None]) - total]
        if num_top := min(self._num_top, logits.shape[-1] - 1):
            logits[:, mask_id] = -torch.inf
            values, best = top(logits, num_top)
            columns += [best, values - total]
        return torch.cat([column.double() for column in columns], dim=-1)


def received(table: Floats, plans: Sequence[StepPlan]) -> list[Logprobs | None]:
    """Splits the rows of all plans' `Reported.table`, on the host, by plan; None for plans that did not ask."""
    finite = np.nan_to_num(table, nan=LEAST, posinf=LEAST, neginf=LEAST)
    lengths = [len(plan.targets) if _asks(plan) else 0 for plan in plans]
    parts = np.split(finite, np.cumsum(lengths)[:-1])
    return [_logprobs(part, plan.request.sampling.logprobs) for plan, part in zip(plans, parts, strict=True)]


def _logprobs(part: Floats, count: int | None) -> Logprobs | None:
    if count is None:
        return None
    num_top = (part.shape[1] - 1) // 2
    proposed, best, values = part[:, 0], part[:, 1 : 1 + num_top], part[:, 1 + num_top :]
    return Logprobs(proposed, best.astype(np.int64), values, count)


def _asks(plan: StepPlan) -> bool:
    return plan.request.sampling.logprobs is not None
