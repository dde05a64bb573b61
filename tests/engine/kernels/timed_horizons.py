"""Times attention of a prompt in blocks of 4 on a CPU: rows with horizons of their own, in one call and in one a block.

Run as `python -m tests.engine.kernels.timed_horizons`. One thread, 4,096 rows, 8 heads of 64.
"""

import time
from statistics import median

import numpy as np
import torch

from engine.kernels import native

ROWS, HEADS, DIM, BLOCK = 4096, 8, 64, 4


def main():
    torch.set_num_threads(1)
    own = native.kernel()
    assert own, "there is no kernel for this CPU"
    q, keys, values = torch.randn(ROWS, HEADS, DIM), *torch.randn(2, HEADS, ROWS, DIM)
    horizons = (np.arange(ROWS) // BLOCK + 1) * BLOCK
    spans = {
        "one call": [native.SpanAddress(0, ROWS)],
        f"{ROWS // BLOCK:,} spans": [native.SpanAddress(start, start + BLOCK) for start in range(0, ROWS, BLOCK)],
    }
    seconds = {name: [] for name in spans}
    with torch.inference_mode():
        for _ in range(5):
            for name, each in spans.items():
                begun = time.process_time()
                own.attend(q, keys, values, np.array(each, np.int64), horizons)
                seconds[name].append(time.process_time() - begun)
    for name, measured in seconds.items():
        print(f"{name}: {median(measured):.2f} s")


if __name__ == "__main__":
    main()
