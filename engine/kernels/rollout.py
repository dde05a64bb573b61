"""Attention rollout: how much of the last layer's attention reaches each input position (arXiv 2005.00928).

d2Cache (2509.23094, section 4.2) recomputes the positions that most of it reaches. Knows matrices, but no policy and no
pages.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def column_sums(layers: Sequence[Tensor], positions: Tensor, length: int) -> Tensor:
    """Column sums [length] of R = R_last ... R_0, where R_l = (E_l + I) / 2, in float32.

    E_l is the head-mean attention of layer l: `layers[l]` [rows, length], each row summing to 1, at the computed
    `positions` [rows] (int64), and the identity elsewhere. The sums are a chain of vector-matrix products from the
    last layer to the first, so no [length, length] matrix is made.
    """
    sums = torch.ones(length, device=positions.device)
    for attention in reversed(layers):
        half = sums[positions] / 2
        sums[positions] = half
        sums += half @ attention
    return sums


def column_sums_direct(layers: Sequence[Tensor], positions: Tensor, length: int) -> Tensor:
    """The slow twin: the product itself, one [length, length] matrix a layer."""
    product = identity = torch.eye(length, device=positions.device)
    for attention in layers:
        effective = identity.clone()
        effective[positions] = attention
        residual = effective + identity
        product = residual / residual.sum(dim=-1, keepdim=True) @ product
    return product.sum(dim=0)
