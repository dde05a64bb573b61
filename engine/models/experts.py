"""A layer's MLP as many small ones, the experts, of which each row goes through a few: mixture of experts (MoE).

How rows are routed is data (`MoEConfig`), so that one layer serves every family. A row's experts depend on this row
alone, or with `BlockRouting` on its block's rows. Sources: MoE with top-k gates (arXiv 1701.06538); shared experts
(DeepSeekMoE, 2401.06066); sigmoid scores, groups and a bias that balances the load (DeepSeek-V3, 2412.19437).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kernels.compiled import expert_mlps
from engine.kernels.products import packed
from engine.models.mlp import MLP, Activation, Linear


@dataclass(frozen=True, slots=True)
class BlockRouting:
    """Rows of a block choose from few experts, so that a block loads fewer weights (LLaDA2.2).

    A block's pool are the experts whose best score at any of its rows is the highest. Of equal scores, here and in the
    choice of each row, the expert with the lower number goes first.
    """

    length: int
    """Positions of a block; blocks are multiples of it, from position 0 on."""
    pool_size: int
    """Experts that the rows of a block choose from."""

    def blocks(self, positions: Tensor) -> Tensor:
        """int64 positions [rows] -> int64 [rows], the number of each row's block among those of these rows.

        Rows of one sequence are neighbours and hold whole blocks, but that the last may end early. So each row that
        begins a block begins a new one here, whatever sequence it is of. Does not wait for the device.
        """
        return (positions % self.length == 0).cumsum(dim=0) - 1

    def within_pools(self, ranked: Tensor, blocks: Tensor) -> Tensor:
        """ranked [rows, experts], blocks [rows] -> the same, with minus infinity outside the pool of each row's block.

        No score of another block has any effect.
        """
        best = torch.full_like(ranked, -torch.inf)  # [rows, experts]: there are no more blocks than rows
        best = best.scatter_reduce(0, blocks.unsqueeze(-1).expand_as(ranked), ranked, "amax")
        pools = _highest(best, self.pool_size)
        outside = torch.ones_like(ranked, dtype=torch.bool).scatter(-1, pools, False)
        return ranked.masked_fill(outside[blocks], -torch.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """How many experts a layer has, how wide they are, and how its router chooses and weighs those of a row."""

    num_experts: int
    experts_per_token: int
    ff_dim: int
    """Width of one expert."""
    shared_ff_dim: int = 0
    """Width of an MLP that every row goes through as well, unweighted; 0 is none."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """What makes an expert's score of its logit: softmax over all experts, or each logit's own sigmoid."""
    has_choice_bias: bool = False
    """Whether a bias of each expert is added to its score for the choice. It does not weigh."""
    num_groups: int = 1
    """Groups of neighbouring experts, of the same size."""
    groups_per_token: int = 1
    """Experts are chosen from so many groups: those whose two best experts have the largest sum of scores."""
    block_routing: BlockRouting | None = None
    """Which experts the rows of a block choose from; None is all, or those of `groups_per_token`."""
    is_normalised: bool = False
    """Whether the weights of a row's experts are divided by their sum."""
    scale: float = 1.0
    """What weights are multiplied by."""
    activation: Activation = "silu"
    """Of the experts."""
    router_norm_eps: float | None = None
    """Routers see rows that are normed with this epsilon, each number times a weight of its own, divided by the square
    root of their width; weights are then multiplied by one of each expert's. None is neither."""
    dense_layers: frozenset[int] = frozenset()
    """Layers that have one MLP of `TransformerConfig.ff_dim` in place of experts."""

    def router_parameters(self, dim: int) -> int:
        """Weights of one layer's router, which are float32 in any model."""
        has_scales = self.router_norm_eps is not None
        return self.num_experts * (dim + self.has_choice_bias + has_scales) + dim * has_scales

    def layer_parameters(self, dim: int) -> int:
        """Weights of one layer's router, experts and shared MLP."""
        return self.router_parameters(dim) + 3 * dim * (self.num_experts * self.ff_dim + self.shared_ff_dim)

    def active_parameters(self, dim: int) -> int:
        """Those of them that one row is multiplied by."""
        return self.router_parameters(dim) + 3 * dim * (self.experts_per_token * self.ff_dim + self.shared_ff_dim)


class Router(nn.Module):
    """Which experts each row goes through, and with what weights. In float32: near scores decide."""

    def __init__(self, dim: int, config: MoEConfig) -> None:
        super().__init__()
        self.config, self.dtype = config, torch.float32
        self.logits = Linear(dim, config.num_experts, dtype=torch.float32)
        self.bias = nn.Parameter(torch.empty(config.num_experts)) if config.has_choice_bias else None
        has_scales = config.router_norm_eps is not None
        self.scale = nn.Parameter(torch.empty(dim)) if has_scales else None
        self.expert_scale = nn.Parameter(torch.empty(config.num_experts)) if has_scales else None

    def forward(self, x: Tensor, blocks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [rows, dim] -> the experts of each row (int64) and their weights (float32), both [rows, experts_per_token].

        The best expert first. `blocks` are `BlockRouting.blocks` of the rows, where the model has such.
        """
        config, x = self.config, x.float()
        if self.scale is not None:
            x = F.rms_norm(x, x.shape[-1:], self.scale * x.shape[-1] ** -0.5, config.router_norm_eps)
        logits = self.logits(x)
        scores = logits.softmax(dim=-1) if config.score == "softmax" else logits.sigmoid()
        ranked = scores if self.bias is None else scores + self.bias
        if config.num_groups > 1:
            ranked = _within_best_groups(ranked, config.num_groups, config.groups_per_token)
        if config.block_routing:
            assert blocks is not None, "rows of a model that routes them by blocks, without their blocks"
            chosen = _highest(config.block_routing.within_pools(ranked, blocks), config.experts_per_token)
        else:
            chosen = ranked.topk(config.experts_per_token, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if config.is_normalised:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        if self.expert_scale is not None:
            weights = weights * self.expert_scale[chosen]
        return chosen, weights * config.scale if config.scale != 1.0 else weights


def _highest(values: Tensor, count: int) -> Tensor:
    """[rows, columns] -> int64 [rows, count], the columns of the highest values; of equals, the first."""
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def _within_best_groups(ranked: Tensor, num_groups: int, kept: int) -> Tensor:
    """ranked [rows, experts] -> the same, with minus infinity outside the best groups."""
    groups = ranked.unflatten(-1, (num_groups, -1))  # [rows, groups, experts of one]
    worth = groups.topk(min(2, groups.shape[-1]), dim=-1).values.sum(dim=-1)
    out = torch.ones_like(worth, dtype=torch.bool).scatter(-1, worth.topk(kept, dim=-1).indices, False)
    return groups.masked_fill(out.unsqueeze(-1), -torch.inf).flatten(-2)


class Experts(nn.Module):
    """The experts' weights, one stacked on the other: gate_up [experts, 2 * ff_dim, dim], down [experts, dim, ff_dim].

    Rows of an expert's `gate_up` are [gate | up].
    """

    def __init__(self, dim: int, config: MoEConfig) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        self.gate_up: nn.Parameter | nn.ParameterList = nn.Parameter(
            torch.empty(config.num_experts, 2 * config.ff_dim, dim)
        )
        self.down: nn.Parameter | nn.ParameterList = nn.Parameter(torch.empty(config.num_experts, dim, config.ff_dim))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x [rows, dim], chosen and weights [rows, experts_per_token] -> their weighted sum, [rows, dim]."""
        return expert_mlps(x, chosen, weights, self.gate_up, self.down, self.activation)

    def pack(self) -> None:
        """As `Linear.pack`, expert by expert."""
        for name in ("gate_up", "down"):
            stacked = getattr(self, name)
            own = [packed(weight) for weight in stacked]
            if any(weight.is_mkldnn for weight in own):
                delattr(self, name)
                setattr(self, name, nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in own))


class MoE(nn.Module):
    """Router, experts, and the MLP that all rows share, if there is one."""

    def __init__(self, dim: int, config: MoEConfig) -> None:
        super().__init__()
        self.router, self.experts = Router(dim, config), Experts(dim, config)
        self.shared = MLP(dim, config.shared_ff_dim) if config.shared_ff_dim else None

    def forward(self, x: Tensor, blocks: Tensor | None = None) -> Tensor:
        """x [rows, dim], and the `BlockRouting.blocks` of the rows where the model has such -> [rows, dim]"""
        out = self.experts(x, *self.router(x, blocks))
        return out if self.shared is None else out + self.shared(x)
