"""Muon in float32: momentum whose matrix updates are orthogonalised by a Newton-Schulz iteration.

Source: Keller Jordan's Muon (kellerjordan.github.io/posts/muon). `torch.optim.Muon` casts to bfloat16, which has no
fast kernel on most CPUs; this one stays in float32 and iterates all matrices of one shape together.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""The quintic's coefficients: steepest at zero while singular values still end near one."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """matrices [n, rows, columns] -> about U V^T of each."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Takes (parameter, parts): a fused matrix is cut into `parts` along its rows, each orthogonalised alone.

    `lr` is a tensor on the parameters' device, so that a CUDA graph of a step reads what it is then.
    """

    def __init__(
        self, matrices: Iterable[tuple[Tensor, int]], lr: Tensor, momentum: float = 0.95, weight_decay: float = 0.2
    ) -> None:
        matrices = list(matrices)
        self.parts = {id(parameter): parts for parameter, parts in matrices}
        super().__init__(
            [parameter for parameter, _ in matrices], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            learnt = [parameter for parameter in group["params"] if parameter.grad is not None]
            grads = [parameter.grad for parameter in learnt]
            for parameter in learnt:
                if not self.state[parameter]:
                    self.state[parameter]["velocity"] = torch.zeros_like(parameter)
            velocities = [self.state[parameter]["velocity"] for parameter in learnt]
            torch._foreach_lerp_(velocities, grads, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(grads, velocities, group["momentum"])  # noqa: SLF001
            same_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter, update in zip(learnt, nesterov, strict=True):
                parts = self.parts[id(parameter)]
                for weight, part in zip(parameter.chunk(parts), update.chunk(parts), strict=True):
                    same_shape[part.shape].append((weight, part))
            for (rows, columns), pairs in same_shape.items():
                weights = [weight for weight, _ in pairs]
                updates = orthogonalise(torch.stack([part for _, part in pairs]))
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                torch._foreach_sub_(weights, (updates * scale).unbind())
