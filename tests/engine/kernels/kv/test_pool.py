"""The tensors of the pool, in each format."""

import pytest
import torch

from engine.kernels.kv.formats import read, write
from engine.kernels.kv.pool import KVPool

CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn])


NEW = {torch.bfloat16: torch.bfloat16}
"""The dtype of rows that are written, where it is not float32."""


@DTYPES
def test_bytes_are_those_of_all_slots_but_the_dump(dtype):
    pool = KVPool(3, 40, 2, 16, dtype, CPU)
    row = {torch.float32: 64, torch.bfloat16: 32}.get(dtype, 16 + 4)
    assert pool.num_bytes == 2 * 3 * 40 * 2 * row


@DTYPES
def test_layers_and_slots_are_apart(dtype):
    pool = KVPool(2, 8, 2, 16, dtype, CPU)
    rows = torch.full((9, 2, 16), 3.0, dtype=NEW.get(dtype))
    for layer in range(2):
        for part, sign in zip(pool.layer(layer), (1, -1), strict=True):
            write(part, rows * sign * (layer + 1), slice(0, 9))
    write(pool.layer(1)[0], rows[:2] * 100, torch.tensor([6, 2]))
    for layer in range(2):
        for part, sign in zip(pool.layer(layer), (1, -1), strict=True):
            expected = torch.full((2, 9, 16), 3.0 * sign * (layer + 1))
            if layer and sign > 0:
                expected[:, [2, 6]] = 300.0
            torch.testing.assert_close(read(part, slice(None), torch.float32).float(), expected)


@DTYPES
def test_cleared_values_are_zero_whatever_they_were(dtype):
    pool = KVPool(2, 8, 2, 16, dtype, CPU)
    for layer in range(2):
        for part in pool.layer(layer):
            write(part, torch.full((9, 2, 16), torch.nan, dtype=NEW.get(dtype)), slice(0, 9))
    pool.values.view(torch.uint8)[:, :, 3] = 0x7F  # e4m3 has a code for NaN, which memory that nobody wrote may hold
    pool.clear(torch.tensor([3, 5]))
    for layer in range(2):
        numbers = read(pool.layer(layer)[1], slice(None), torch.float32)
        assert numbers[:, [3, 5]].eq(0).all()
        assert numbers[:, 4].isnan().all()
