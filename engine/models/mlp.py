"""A linear layer, and the gated MLP that is made of two. Knows no layer of a transformer and no checkpoint."""

import torch
from torch import Tensor, nn

from engine.kernels.compiled import linear
from engine.kernels.products import Activation, gated, packed

__all__ = ["MLP", "Activation", "Linear"]


class Linear(nn.Module):
    """`nn.Linear` without the random initialisation that a checkpoint overwrites anyway."""

    def __init__(self, in_dim: int, out_dim: int, bias: bool = False, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        """Of the weight, whatever the model's is; None is the model's."""
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim))
        self.bias = nn.Parameter(torch.empty(out_dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def pack(self) -> None:
        """Puts the weight in the memory order that is best for products; only `linear` can read it then."""
        self.weight = nn.Parameter(packed(self.weight), requires_grad=False)


class MLP(nn.Module):
    """activation(gate) * up, both from one fused product: weight rows [gate | up]. With `silu` it is SwiGLU."""

    def __init__(self, dim: int, ff_dim: int, activation: Activation = "silu") -> None:
        super().__init__()
        self.activation: Activation = activation
        self.gate_up = Linear(dim, 2 * ff_dim)
        self.down = Linear(ff_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, dim] -> [rows, dim]"""
        return self.down(gated(self.gate_up(x), self.activation))
