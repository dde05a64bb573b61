"""Keys and values for other positions than those that they were computed for.

A key lies in the pool rotated by its position; rotating it by the difference of two positions makes it the key of the
other one. A value has no position. Knows slots, but no requests.
"""

import torch
from torch import Tensor

from engine.kernels.kv.formats import read, write
from engine.kernels.kv.pool import KVPool
from engine.kernels.products import rotated


def move(pool: KVPool, sources: Tensor, targets: Tensor, cos: Tensor, sin: Tensor) -> None:
    """The slots `targets` get what the slots `sources` hold, keys rotated by the angles of cos and sin [1, half].

    Both are int64 [some], and have no slot in common. Keys are rotated in float32: those that are codes are read,
    rotated and coded again. Values are the same bits.
    """
    pool.move(sources, targets)
    angles = [table.expand(len(sources), 1, -1).contiguous() for table in (cos, sin)]
    for layer in range(len(pool.keys)):
        keys, _ = pool.layer(layer)
        rows = read(keys, sources, torch.float32).transpose(0, 1)  # [some, kv_heads, head_dim]
        moved = rotated(rows.float().contiguous(), *angles)
        write(keys, moved.to(rows.dtype) if isinstance(keys, Tensor) else moved, targets, pool.prune)
