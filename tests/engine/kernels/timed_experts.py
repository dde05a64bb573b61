"""Times a layer of experts on a CPU, for each row and active parameter, against dense MLPs of as many parameters.

Run as `python -m tests.engine.kernels.timed_experts`. One layer of LLaDA-MoE-7B-A1B in float32, packed, on one thread;
the layers take turns. An expert has an eighth of the rows. So the dense MLP is timed with all rows, which share each
weight that they read, and with an eighth of them, which read a weight for as few rows as experts do.
"""

import time
from statistics import median

import torch

from engine.models.experts import Experts, MoE, MoEConfig
from engine.models.mlp import MLP, Linear

DIM, TURNS = 2048, 3
CONFIG = MoEConfig(num_experts=64, experts_per_token=8, ff_dim=1024)
ROWS = (32, 128, 512, 1024)


def filled(layer):
    for parameter in layer.parameters():
        parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    for module in layer.modules():
        if isinstance(module, Linear | Experts):
            module.pack()
    return layer


def nanoseconds(layer, parameters, x):
    """Of processor time, for each row and parameter."""
    begun = time.process_time()
    layer(x)
    return 1e9 * (time.process_time() - begun) / (len(x) * parameters)


@torch.inference_mode()
def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width = CONFIG.experts_per_token * CONFIG.ff_dim
    experts, dense = filled(MoE(DIM, CONFIG)), filled(MLP(DIM, width))
    active = CONFIG.active_parameters(DIM)
    print(f"{active / 1e6:.0f} M of {CONFIG.layer_parameters(DIM) / 1e6:.0f} M parameters are active")
    for rows in ROWS:
        x, few = torch.randn(rows, DIM), max(rows * CONFIG.experts_per_token // CONFIG.num_experts, 1)
        turns = [
            (
                nanoseconds(experts, active, x),
                nanoseconds(dense, 3 * DIM * width, x),
                nanoseconds(dense, 3 * DIM * width, x[:few]),
            )
            for _ in range(TURNS)
        ]
        own, all_rows, few_rows = map(median, zip(*turns, strict=True))
        print(
            f"{rows} rows: experts {own:.4f} ns, {all_rows / own:.2f} of the dense MLP's speed with {rows} rows "
            f"({all_rows:.4f} ns), {few_rows / own:.2f} with {few} ({few_rows:.4f} ns)"
        )


if __name__ == "__main__":
    main()
