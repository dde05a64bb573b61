"""Times attention over codes of keys and values against float32 on a CPU, in turns, in CPU time of one thread.

Run as `python -m tests.engine.kernels.timed_codes`. A line for each shape: milliseconds in float32, and the share of
that which codes take.
"""

import time

import torch

from engine.kernels import native
from engine.kernels.kv.formats import LARGEST, as_stored

ROUNDS = 9
SHAPES = (  # rows, heads, KV heads, head_dim, visible keys
    (32, 8, 8, 32, 96),
    (32, 8, 8, 64, 1920),
    (512, 8, 8, 64, 1920),
    (32, 32, 8, 128, 2048),
    (32, 32, 32, 128, 2048),
)


@torch.inference_mode()
def seconds_of(rows, heads, kv_heads, head_dim, visible):
    """By dtype, the fastest of the rounds."""
    own = native.kernel()
    q, kv = torch.randn(rows, heads, head_dim), torch.randn(2, kv_heads, visible, head_dim)
    kept = {dtype: [as_stored(part, dtype) for part in kv] for dtype in (torch.float32, *LARGEST)}
    calls = max(int(1e8 / (rows * heads * head_dim * visible)), 1)
    best = dict.fromkeys(kept, float("inf"))
    for _ in range(ROUNDS):
        for dtype, (keys, values) in kept.items():
            begun = time.process_time()
            for _ in range(calls):
                own.attend_all(q, keys, values)
            best[dtype] = min(best[dtype], (time.process_time() - begun) / calls)
    return best


if __name__ == "__main__":
    torch.set_num_threads(1)
    for shape in SHAPES:
        plain, *coded = seconds_of(*shape).values()
        shares = (f"{name} {one / plain:.2f}" for name, one in zip(("int8", "fp8"), coded, strict=True))
        print(shape, f"{1e3 * plain:.2f} ms,", *shares)
