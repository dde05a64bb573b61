"""Confidence over the most probable tokens only (CadLLM, arXiv 2512.07173): finding these replaces sums over all.

Works on many requests at once, each row with its own size. Knows no policy.
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

    def best_token(self, mask_id: int | None) -> Tensor:
        """The most probable token [rows] that is not the mask; among equals the lowest id, as in `argmax`."""
        logits = self.logits if mask_id is None else self.logits.masked_fill(self.tokens == mask_id, -torch.inf)
        is_best = logits == logits.amax(dim=-1, keepdim=True)
        return self.tokens.masked_fill(~is_best, torch.iinfo(torch.int64).max).amin(dim=-1)

    def log_odds(self, tokens: Tensor) -> Tensor:
        """log(c / (1 - c)) [rows] of the confidence c in these tokens [rows]; -inf where one is not in its subset."""
        is_token = self.tokens == tokens[:, None]
        chosen = self.logits.masked_fill(~is_token, -torch.inf).amax(dim=-1)
        log_odds = chosen - self.logits.masked_fill(is_token, -torch.inf).logsumexp(dim=-1)
        log_p = self.logits.log_softmax(dim=-1)
        entropy = -(log_p.exp() * log_p.clamp(min=-1e9)).sum(dim=-1)
        return torch.where(self.by_entropy, -entropy.log(), log_odds)


GROUP = 16
"""Tokens in one group: `top` compares the best token of each group first."""


def most_probable(logits: Tensor, sizes: Tensor, largest: int, by_entropy: Tensor) -> Subset:
    """The `sizes` [rows] most probable tokens of logits [rows, vocab], in at most `largest` and at least 2 columns."""
    values, tokens = top(logits, max(largest, 2))
    beyond = torch.arange(values.shape[-1], device=logits.device) >= sizes[:, None]
    return Subset(values.masked_fill(beyond, -torch.inf), tokens, by_entropy)


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same as `logits.topk(count)` [rows, count], but computed on a small part of the vocabulary.

    The `count` best tokens lie in the `count` groups with the highest maxima. Neighbours in memory belong to different
    groups, so that the maxima take one elementwise pass. Tokens beyond the last whole group are always looked at.
    """
    vocab = logits.shape[-1]
    num_groups = vocab // GROUP
    if num_groups <= count:
        return logits.topk(count)
    grouped = logits[:, : num_groups * GROUP].view(-1, GROUP, num_groups)
    best = grouped.amax(dim=1).topk(count, sorted=False).indices[:, None]  # [rows, 1, count]
    members = best + num_groups * torch.arange(GROUP, device=logits.device)[:, None]  # [rows, GROUP, count]
    rest = torch.arange(num_groups * GROUP, vocab, device=logits.device).expand(len(logits), -1)
    tokens = torch.cat((members.flatten(1), rest), dim=-1)
    values, places = logits.gather(-1, tokens).topk(count)
    return values, tokens.gather(-1, places)
