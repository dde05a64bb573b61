"""How torchao stores the weight of a linear layer as codes, in how many bytes, and where it has products for them.

The only module that knows torchao, which is optional (`unmask[quantization]`) and takes seconds to import: not before a
layer is quantised. Codes are per row of the weight (int8, e4m3) or per 128 numbers of it (int4).
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from engine.core.config import Quantization
from engine.core.errors import ConfigError

GROUP = 128
"""Numbers of a row that share a scale and a zero point in int4."""
INT4_COLUMNS, INT4_ROWS = 1024, 8
"""What torchao pads the columns and the rows of a weight to multiples of, in int4."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """One format of weights. A weight is [rows, columns], as `nn.Linear` has it."""

    quantise: Callable[[Tensor], Tensor]
    """A weight of numbers -> the same as a tensor of torchao's, on the same device."""
    stored: Callable[[int, int], int]
    """Rows and columns -> bytes of such a tensor, with its scales."""
    takes: Callable[[int, int], bool] = lambda _rows, _columns: True
    """Whether a weight of so many rows and columns has this format; others keep their numbers."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    """What a model may compute in."""
    not_on_cpus: str | None = None
    """Why it is refused there; None where it is not."""


def _int8(weight: Tensor) -> Tensor:
    from torchao.quantization import Int8Tensor, PerRow

    return Int8Tensor.from_hp(weight, PerRow())


def _fp8(weight: Tensor) -> Tensor:
    from torchao.quantization import Float8Tensor, PerRow

    return Float8Tensor.from_hp(weight, float8_dtype=torch.float8_e4m3fn, granularity=PerRow())


def _int4(weight: Tensor) -> Tensor:
    from torchao.quantization import Int4TilePackedTo4dTensor

    return Int4TilePackedTo4dTensor.from_hp(weight, [1, GROUP])


def _int4_bytes(rows: int, columns: int) -> int:
    rows, columns = -(-rows // INT4_ROWS) * INT4_ROWS, -(-columns // INT4_COLUMNS) * INT4_COLUMNS
    return rows * columns // 2 + rows * (columns // GROUP) * 2 * torch.bfloat16.itemsize


SCHEMES: Mapping[Quantization, Scheme | None] = {
    "none": None,
    # A float32 scale of each row, and its zero point, a byte that is 0.
    "int8": Scheme(
        _int8,
        lambda rows, columns: rows * (columns + 4 + 1),
        dtypes=(torch.float32, torch.bfloat16),  # products are scaled once they are sums, which overflow in float16
    ),
    "int4": Scheme(
        _int4,
        _int4_bytes,
        takes=lambda _, columns: columns % GROUP == 0,
        dtypes=(torch.bfloat16,),
        not_on_cpus="torchao has no product of 4-bit weights for CPUs",
    ),
    "fp8": Scheme(
        _fp8,
        lambda rows, columns: rows * (columns + 4),
        not_on_cpus="CPUs turn e4m3 into numbers one by one, which takes longer than the product",
    ),
}
"""By `EngineConfig.quantization`."""


def check_quantization(name: Quantization, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ConfigError if weights cannot be stored so on this device, in a model of this dtype, or without torchao.

    Imports torchao, if it is there and wanted.
    """
    scheme = SCHEMES[name]
    if scheme is None:
        return
    if device.type == "cpu" and scheme.not_on_cpus:
        raise ConfigError(f"quantization is {name!r}, which needs CUDA: {scheme.not_on_cpus}; on a CPU use int8")
    if dtype not in scheme.dtypes:
        known = " or ".join(str(each).removeprefix("torch.") for each in scheme.dtypes)
        raise ConfigError(f"quantization is {name!r}, which needs dtype {known}; it is {str(dtype)[len('torch.') :]}")
    try:
        with _quiet("torchao", "torch.utils._pytree"):
            import torchao.quantization  # noqa: F401 - optional, and slow to import
    except ImportError as error:
        missing = f"torchao does not work here ({error})" if find_spec("torchao") else "it is not installed"
        raise ConfigError(
            f"quantization is {name!r}, which needs torchao, and {missing}: pip install 'unmask[quantization]', or "
            "leave the setting out"
        ) from error


def stored_bytes(weight: Tensor) -> int:
    """The memory of a tensor: of torchao's, that of all its parts."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    if flatten is None:
        return weight.nbytes
    return sum(stored_bytes(getattr(weight, name)) for name in flatten()[0])


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without warnings by these loggers: of libraries for other GPUs, and of torch's names that change."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
