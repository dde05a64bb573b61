"""Confidence over the most probable tokens only (CadLLM, arXiv 2512.07173): one sort of a few replaces sums over all.

Many requests at once, each row by a size of its own. Knows no policy.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Subset(NamedTuple):
    """The logits of some rows' most probable tokens."""

    logits: Tensor
    """float32 [rows, largest size], descending; -inf beyond a row's own size."""
    tokens: Tensor
    """[rows, largest size] their ids."""
    by_entropy: Tensor
    """bool [rows] whether confidence is 1 / (1 + entropy)."""

    def best_token(self, mask_id: int) -> Tensor:
        """The most probable token [rows] that is not the mask."""
        first, second = self.tokens[:, 0], self.tokens[:, 1]
        return torch.where(first == mask_id, second, first)

    def log_odds(self, tokens: Tensor) -> Tensor:
        """log(c / (1 - c)) [rows] of the confidence c in these tokens [rows]; -inf where one is not in its subset."""
        is_token = self.tokens == tokens[:, None]
        chosen = self.logits.masked_fill(~is_token, -torch.inf).amax(dim=-1)
        log_odds = chosen - self.logits.masked_fill(is_token, -torch.inf).logsumexp(dim=-1)
        log_p = self.logits.log_softmax(dim=-1)
        entropy = -(log_p.exp() * log_p.clamp(min=-1e9)).sum(dim=-1)
        return torch.where(self.by_entropy, -entropy.log(), log_odds)


def most_probable(logits: Tensor, sizes: Tensor, largest: int, by_entropy: Tensor) -> Subset:
    """Of logits [rows, vocab] the `sizes` [rows] most probable tokens, at most `largest` and at least 2."""
    values, tokens = logits.topk(max(largest, 2), dim=-1)
    beyond = torch.arange(values.shape[-1], device=logits.device) >= sizes[:, None]
    return Subset(values.masked_fill(beyond, -torch.inf), tokens, by_entropy)
