"""Times products with weights in codes against float32 on a CPU, in turns, in CPU time of one thread.

Run as `python -m tests.engine.kernels.timed_weights`. A line for each shape: milliseconds in float32, and the share of
that which each takes: `coded_linear` over int8 and over e4m3, torchao's int8, which makes numbers of the whole weight,
and for few rows torch's own operator.
"""

import time

import torch
from torch.nn import functional as F

from engine.kernels.products import coded_linear, linear, packed
from engine.models.quantised.schemes import SCHEMES

ROUNDS = 7
WEIGHTS = ((768, 256), (256, 1024), (4096, 4096))  # rows, columns: two of the bundled model's, one of an 8 B model's
ROWS = (8, 32, 256)
FEW = 32


@torch.inference_mode()
def seconds_of(rows, weight):
    """By name, the fastest of the rounds."""
    x, plain = torch.randn(rows, weight.shape[1]), packed(weight)
    int8, fp8 = (SCHEMES[name].quantise(weight) for name in ("int8", "fp8"))
    products = {
        "float32": lambda: linear(x, plain),
        "int8": lambda: coded_linear(x, int8.qdata, int8.scale),
        "fp8": lambda: coded_linear(x, fp8.qdata, fp8.scale),
        "torchao's int8": lambda: F.linear(x, int8),
        "torch's int8": lambda: torch._weight_int8pack_mm(x, int8.qdata, int8.scale.flatten()),
    }
    if rows > FEW:
        del products["torch's int8"]
    calls = max(int(1e8 / (rows * weight.numel())), 1)
    best = dict.fromkeys(products, float("inf"))
    for _ in range(ROUNDS):
        for name, product in products.items():
            begun = time.process_time()
            for _ in range(calls):
                product()
            best[name] = min(best[name], (time.process_time() - begun) / calls)
    return best


if __name__ == "__main__":
    torch.set_num_threads(1)
    for shape in WEIGHTS:
        weight = torch.randn(shape) / shape[1] ** 0.5
        for rows in ROWS:
            plain, *others = seconds_of(rows, weight).items()
            shares = ", ".join(f"{name} {own / plain[1]:.2f}" for name, own in others)
            print(f"{rows} rows by {shape}: {1e3 * plain[1]:.2f} ms, {shares}", flush=True)
