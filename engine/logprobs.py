"""Log-probabilities for requests that report them: of the model's own logits, before anything is done to them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.params import MAX_LOGPROBS
from engine.plan import Logprobs, StepPlan
from engine.request import Floats, Ids
from engine.transfer import to_device
from engine.vocabulary import top

LEAST = -9999.0
"""In place of a log-probability that is no finite number, as elsewhere in the field."""
ROWS_AT_ONCE = 256
"""Bounds the scratch memory."""


class Reported:
    """The targets whose plan asks for log-probabilities. Made before the logits are edited."""

    def __init__(self, logits: Tensor, plans: Sequence[StepPlan]) -> None:
        """logits [targets of all plans, vocab] as the model gave them."""
        self._counts = [plan.request.sampling.logprobs for plan in plans]
        self._lengths = [len(plan.targets) for plan in plans]
        self._indices: Ids = np.flatnonzero(np.repeat([count is not None for count in self._counts], self._lengths))
        # As many for everyone: which of equals are found may depend on how many are looked for.
        self._num_top = min(MAX_LOGPROBS, logits.shape[-1] - 1) if any(self._counts) else 0
        self._logits, self._rows = logits, self._indices
        if logits.dtype == torch.float32:  # these will be overwritten; others are converted first, and stay
            self._logits, self._rows = logits[to_device(self._indices, logits.device)], np.arange(len(self._indices))

    def table(self, tokens: Tensor, mask_id: int) -> Tensor:
        """float64 [reported, 1 + 2 * some]: of the proposed `tokens` [all targets], the best tokens, and of these."""
        parts = []
        for first in range(0, len(self._indices), ROWS_AT_ONCE):
            some = slice(first, first + ROWS_AT_ONCE)
            logits = self._logits[to_device(self._rows[some], tokens.device)].float()  # [some, vocab]
            total = logits.logsumexp(dim=-1, keepdim=True)
            proposed = logits.gather(-1, tokens[to_device(self._indices[some], tokens.device)][:, None]) - total
            parts.append([proposed])
            if self._num_top:
                logits[:, mask_id] = -torch.inf
                values, best = top(logits, self._num_top)
                parts[-1] += [best, values - total]
        return torch.cat([torch.cat([column.double() for column in part], dim=-1) for part in parts])

    def received(self, table: Floats) -> list[Logprobs | None]:
        """The rows of `table` on the host, per plan; None for those that did not ask."""
        finite = np.nan_to_num(table, nan=LEAST, posinf=LEAST, neginf=LEAST)
        lengths = [0 if count is None else length for count, length in zip(self._counts, self._lengths, strict=True)]
        parts = np.split(finite, np.cumsum(lengths)[:-1])
        counts = zip(self._counts, parts, strict=True)
        return [None if count is None else self._of(part, count) for count, part in counts]

    def _of(self, part: Floats, count: int) -> Logprobs:
        proposed, best, values = np.split(part, [1, 1 + self._num_top], axis=1)
        return Logprobs(proposed[:, 0], best.astype(np.int64), values, count)
