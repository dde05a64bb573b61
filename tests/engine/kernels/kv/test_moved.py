"""Keys at other positions, against numbers in float64.

`relay.safetensors` has keys of seven positions, as they were before rotation and after it, and after a rotation for
positions that are `moved.N` further right (theta 500,000).
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.kernels.kv.formats import read, write
from engine.kernels.kv.moved import move
from engine.kernels.kv.pool import KVPool
from engine.models.rotary import rotary_table

GOLDEN = load_file(Path(__file__).parents[3] / "data" / "relay.safetensors")
SHIFTS = [-3, 0, 5, 64]
COUNT, HEADS, HEAD_DIM = GOLDEN["rotated"].shape
TABLES = rotary_table(HEAD_DIM, 128, 500_000.0, None)


def moved(shift, dtype):
    """[positions, heads, head_dim] what becomes of the golden keys in a pool of this dtype, and of other values."""
    pool = KVPool(2, 2 * COUNT, HEADS, HEAD_DIM, dtype, torch.device("cpu"))
    sources, targets = (
        torch.arange(COUNT).flip(0),
        torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)) + 7,
    )
    values = torch.randn(COUNT, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    for layer in range(2):
        for stored, rows in zip(pool.layer(layer), (GOLDEN["rotated"].float(), values), strict=True):
            write(stored, rows.to(dtype) if isinstance(stored, torch.Tensor) else rows, sources)
    cos, sin = (table[abs(shift)] for table in TABLES)
    with torch.inference_mode():
        move(pool, sources, targets, cos, -sin if shift < 0 else sin)
    return pool, sources, targets


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(
    ("dtype", "error"),
    [(torch.float32, 1e-5), (torch.bfloat16, (2**0.5 + 1) * 2**-9), (torch.int8, 1 / 60), (torch.float8_e4m3fn, 1 / 8)],
    ids=str,
)
def test_keys_are_those_of_the_other_position(shift, dtype, error):
    """Of codes, with the errors of being coded twice; of bfloat16, of rounding before and after."""
    pool, _, targets = moved(shift, dtype)
    expected = GOLDEN[f"moved.{shift}"]
    bound = error * (1 if dtype == torch.float32 else expected.abs().amax(-1, keepdim=True).clamp(min=1))
    for layer in range(2):
        keys = read(pool.layer(layer)[0], targets, torch.float32).transpose(0, 1)
        assert ((keys.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn], ids=str)
def test_values_are_the_same_bits(dtype):
    pool, sources, targets = moved(5, dtype)
    for layer in range(2):
        values = pool.layer(layer)[1]
        before, after = (read(values, slots, torch.float32) for slots in (sources, targets))
        assert torch.equal(before, after)
