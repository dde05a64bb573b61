"""Attention as textbooks have it, in float64, for what tests of its kernels expect."""

import torch


def watched_by_formula(q, keys, values):
    """q [rows, heads, head_dim], keys and values [kv_heads, visible, head_dim] -> as q, and weights [rows, visible].

    The weights are the mean over heads.
    """
    group = q.shape[1] // len(keys)
    k, v = (x.double().repeat_interleave(group, dim=0) for x in (keys, values))
    weights = (torch.einsum("rhd,hsd->hrs", q.double(), k) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return torch.einsum("hrs,hsd->rhd", weights, v).float(), weights.mean(dim=0).float()
