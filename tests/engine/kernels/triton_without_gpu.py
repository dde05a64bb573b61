"""A script that compiles the kernels for a GPU which this machine lacks, through the functions that launch them.

Arguments: the GPU's architecture, and bytes of shared memory that a program may have there. Prints the name of each
kernel, and what it needs of them; fails if that is more. Nothing is launched, so the results are not read.
"""

import sys
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from engine.kernels.kv.formats import quantised
from engine.kernels.kv.triton_write import write
from engine.kernels.triton_attention import attend_paged
from engine.kernels.triton_proposals import best_token, draw, log_odds


def pretend(architecture, shared):
    """Makes Triton believe in such a GPU."""

    def load(name, _binary, needed, _device):
        print(name, needed)
        return object(), None, 0, 0, 1024

    utils = SimpleNamespace(get_device_properties=lambda _: {"max_shared_mem": shared}, load_binary=load)
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda _: 0,
            get_current_target=lambda: GPUTarget("cuda", architecture, 32),
            launcher_cls=lambda *_: lambda *_: None,
            utils=utils,
        )
    )


def attend(dtype, group, head_dim, page_size, stored=None):
    q, kv = torch.empty(64, 2 * group, head_dim, dtype=dtype), torch.empty(2, 2, 1024, head_dim, dtype=dtype)
    if stored:
        kv = [quantised(part, stored) for part in kv]
    tiles, horizons, table = (torch.zeros(shape, dtype=torch.int32) for shape in ((4, 3), (64,), (2, 32)))
    attend_paged(q, *kv, tiles, horizons, table, page_size)


if __name__ == "__main__":
    pretend(*map(int, sys.argv[1:]))
    attend(torch.bfloat16, 1, 128, 32)
    attend(torch.bfloat16, 7, 128, 32)
    attend(torch.float16, 2, 80, 5)
    attend(torch.bfloat16, 4, 256, 16)
    attend(torch.float32, 1, 64, 1)
    attend(torch.bfloat16, 1, 128, 32, torch.int8)
    attend(torch.bfloat16, 4, 128, 32, torch.float8_e4m3fn)
    attend(torch.bfloat16, 4, 256, 16, torch.int8)
    attend(torch.float32, 1, 64, 1, torch.float8_e4m3fn)
    for stored, slots in ((torch.int8, torch.arange(32)), (torch.float8_e4m3fn, slice(0, 32))):
        write(quantised(torch.zeros(4, 64, 128), stored), torch.zeros(32, 8, 128, dtype=torch.bfloat16)[:, :4], slots)
    logits, columns = torch.empty(32, 126_464, dtype=torch.bfloat16), torch.zeros(3, 32, dtype=torch.int64)
    log_odds(logits, best_token(logits, 126_336)[0])
    draw(logits, torch.ones(32), *columns, 126_336)
