"""Layers that norm before and after each of their parts, and the vector that a row may carry beside its token.

A layer has an MLP and experts side by side; some layers see all that a row may see, with heads of their own, the others
a window of it. How wide and which is data (`SandwichConfig`); MLPs have the activation of `MoEConfig`. Sources: Gemma 2
(arXiv 2408.00118), norms on both sides, windows, capped logits; Gemma 3 (2503.19786); self-conditioning (Analog Bits,
2208.04202).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kernels.products import rotated
from engine.models.experts import MoE, MoEConfig
from engine.models.mlp import MLP, Activation, Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class SandwichConfig:
    """What such layers have beside the fields of `TransformerConfig`, whose heads are those of layers with a window."""

    window: int
    """Positions that a row sees in a layer with a window, itself included."""
    full_layers: frozenset[int]
    """Layers without a window. Their values are their keys, before norm and rotation."""
    full_kv_heads: int
    full_head_dim: int
    full_rope_theta: float
    full_rotated_pairs: int
    """Pairs of numbers of a head that are rotated in them; the others stay."""
    softcap: float
    """Logits are softcap * tanh(logits / softcap)."""

    def parameters(self, dim: int, ff_dim: int, num_heads: int, heads: "LayerHeads") -> int:
        """Weights of a layer beside its experts and their router."""
        attention = dim * (num_heads + heads.projected * heads.kv_heads) * heads.head_dim + 2 * heads.head_dim
        return attention + num_heads * heads.head_dim * dim + 3 * dim * ff_dim + NORMS * dim + SCALARS


NORMS, SCALARS = 7, 2


class LayerHeads(NamedTuple):
    """Heads of keys and values of one layer."""

    kv_heads: int
    head_dim: int
    projected: int
    """How many products they come from: 1 where values are keys, else 2."""


class OpenRows(NamedTuple):
    """Which rows are of an open block, and what they carry beside their token."""

    is_open: Tensor
    """bool [rows]"""
    vectors: Tensor
    """[rows, dim] `NoisedTransformer.vectors` of the step before; zeros say nothing, and so do all other rows'."""


def normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMS norm of the last dimension in float32, the weight's product too."""
    return F.rms_norm(x.float(), x.shape[-1:], None if weight is None else weight.float(), eps).to(x.dtype)


class Norm(nn.Module):
    """`normed` with a weight for each number of a row."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return normed(x, self.weight, self.eps)


class SandwichAttention(nn.Module):
    """q, k and v from one fused product: weight rows [all q heads | k heads | v heads], without v where it is k."""

    def __init__(self, dim: int, num_heads: int, heads: LayerHeads, eps: float) -> None:
        super().__init__()
        self.num_heads, self.heads, self.eps = num_heads, heads, eps
        self.qkv = Linear(dim, (num_heads + heads.projected * heads.kv_heads) * heads.head_dim)
        self.q_norm = nn.Parameter(torch.empty(heads.head_dim))
        self.k_norm = nn.Parameter(torch.empty(heads.head_dim))
        self.out = Linear(num_heads * heads.head_dim, dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as an `AttentionContext` takes them, which divides scores by sqrt(head_dim): they are q k here."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.heads.head_dim))
        kv_heads = self.heads.kv_heads
        q, k, *own = qkv.split((self.num_heads, *[kv_heads] * self.heads.projected), dim=1)
        v = normed(own[0] if own else k, None, self.eps)
        q = normed(q, self.q_norm * self.heads.head_dim**0.5, self.eps)
        k = normed(k, self.k_norm, self.eps)
        q, k = rotated(torch.cat((q, k), dim=1), cos, sin).split((self.num_heads, kv_heads), dim=1)
        return q, k, v


class SandwichBlock(nn.Module):
    """One layer: what lies before attention over the context, and what lies after it."""

    def __init__(self, dim: int, ff_dim: int, num_heads: int, heads: LayerHeads, moe: MoEConfig, eps: float) -> None:
        super().__init__()
        self.attention_norm, self.after_attention_norm = Norm(dim, eps), Norm(dim, eps)
        self.attention = SandwichAttention(dim, num_heads, heads, eps)
        self.mlp_norm, self.after_mlp_norm = Norm(dim, eps), Norm(dim, eps)
        self.mlp = MLP(dim, ff_dim, moe.activation)
        self.experts_norm, self.after_experts_norm = Norm(dim, eps), Norm(dim, eps)
        self.moe = MoE(dim, moe)
        self.last_norm = Norm(dim, eps)
        self.scalars = nn.Parameter(torch.empty(SCALARS))
        """What a row is multiplied by in the end: one of the context, one of an open block."""

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [rows, dim] -> q, k and v as `AttentionContext.attend` takes them."""
        return self.attention(self.attention_norm(x), cos, sin)

    def after(self, x: Tensor, attended: Tensor, is_open: Tensor) -> Tensor:
        """x [rows, dim], attended [rows, heads * head_dim] and bool is_open [rows] -> [rows, dim]."""
        x = x + self.after_attention_norm(self.attention.out(attended))
        mlp = self.after_mlp_norm(self.mlp(self.mlp_norm(x)))
        experts = self.after_experts_norm(self.moe.experts(self.experts_norm(x), *self.moe.router(x)))
        x = x + self.last_norm(mlp + experts)
        return x * self.scalars[is_open.long()].unsqueeze(-1)


class SelfConditioning(nn.Module):
    """What a row's vector adds to its embedding: nothing where the vector is zero."""

    def __init__(self, dim: int, ff_dim: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.norm, self.mlp = Norm(dim, eps), MLP(dim, ff_dim, activation)

    def forward(self, vectors: Tensor) -> Tensor:
        """[rows, dim] -> [rows, dim]"""
        return self.mlp(self.norm(vectors))
