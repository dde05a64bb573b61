"""How much each cached key is worth keeping: R-KV's score (arXiv 2505.24133), for one layer.

Attention of the judges says which keys are read; cosine similarity says which keys others stand for. Knows keys and
queries; not who is evicted for it. The published functions (`Zefan-Cai/R-KV`) are followed where they differ from the
paper: a group's largest logit goes into one softmax, pooling comes after the mean, and a key that resembles no other
frees the first key of a link, which protects the first token.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

POOLED_KEYS = 7
"""Neighbouring keys that share the importance of the best of them."""
SIMILAR = 0.5
"""Cosine above which a key counts as a copy of another."""
MOST_PAIRS = 1 << 22
"""Pairs of keys, or of queries and keys, that are compared at once: some 64 MiB. Chosen, not measured."""


def retention(q: Tensor, keys: Tensor, candidates: int, weight: float, pooled: int = POOLED_KEYS) -> Tensor:
    """Scores of the first `candidates` keys -> float32 [kv_heads, candidates]; high ones stay.

    `q` [judges, heads, head_dim] are queries of rows that stay, and keys [kv_heads, n, head_dim], in the order of
    positions, end with the keys of these. `weight` (lambda, 0 to 1) is the share of importance against redundancy.
    """
    keys = keys.float()
    read = importance(q.float(), keys[:, :candidates], pooled)
    return weight * read - (1 - weight) * redundancy(keys)[:, :candidates]


def importance(q: Tensor, keys: Tensor, pooled: int = POOLED_KEYS) -> Tensor:
    """[kv_heads, n] attention that reaches each key, the mean over the judges; sums to 1 before pooling."""
    kv_heads, count, head_dim = keys.shape
    at_once = max(MOST_PAIRS // (q.shape[1] * count), 1)
    attention = torch.zeros(keys.shape[:2], device=keys.device)
    for some in torch.split(q.view(len(q), kv_heads, -1, head_dim), at_once):
        logits = torch.einsum("jkgd,knd->kgjn", some, keys).amax(dim=1) * head_dim**-0.5
        attention += logits.softmax(dim=-1).sum(dim=1)
    attention = attention.unsqueeze(1) / len(q)
    return F.max_pool1d(attention, pooled, stride=1, padding=pooled // 2).squeeze(1)


def redundancy(keys: Tensor) -> Tensor:
    """[kv_heads, n] softmax of each key's mean cosine with all others; sums to 1.

    Of the keys that resemble a key, the latest one is not counted, since it would stand for it.
    """
    count = keys.shape[1]
    directions = F.normalize(keys, dim=-1, eps=1e-8)
    places = torch.arange(count, device=keys.device)
    sums = torch.zeros(keys.shape[:2], device=keys.device)
    at_once = max(MOST_PAIRS // (len(keys) * count), 1)
    for first in range(0, count, at_once):
        similarity = directions[:, first : first + at_once] @ directions.mT
        similarity.diagonal(first, dim1=-2, dim2=-1).zero_()
        latest = torch.where(similarity > SIMILAR, places, 0).amax(dim=-1, keepdim=True)
        sums += similarity.scatter_(-1, latest, 0.0).sum(dim=-2)
    return (sums / count).softmax(dim=-1)
