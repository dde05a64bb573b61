"""Copies host arrays and numbers to the device without making the host wait for it."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNED = 16
"""Bytes: every array of a packed copy begins at a multiple of this, so that kernels may read vectors."""


class Uploaded:
    """One array of an `Upload`."""

    __slots__ = ("tensor",)

    tensor: Tensor
    """On the device, once the upload is sent. On a CPU it shares the array's memory."""


class Upload:
    """The host arrays that a step reads on its device: added one by one, sent in one copy.

    Each copy costs the host several microseconds on CUDA, and a step of many requests has dozens of arrays.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._arrays: list[NDArray[Any]] = []
        self._uploaded: list[Uploaded] = []

    def add(self, array: NDArray[Any]) -> Uploaded:
        """Takes an array, which must not change any more. Its tensor is there after `send`."""
        self._arrays.append(array)
        self._uploaded.append(uploaded := Uploaded())
        return uploaded

    def send(self) -> None:
        """Copies all arrays. On CUDA the copy is queued, from pinned memory, and the host does not wait for it."""
        for uploaded, tensor in zip(self._uploaded, to_devices(self._arrays, self.device), strict=True):
            uploaded.tensor = tensor


def fill(tensor: Tensor, places: tuple[Tensor, ...], value: float) -> None:
    """`tensor[places] = value`, which itself would copy from pageable memory on CUDA and wait for all queued work."""
    tensor.index_put_(places, tensor.new_full((), value))


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor on the device."""
    return to_devices([array], device)[0]


def to_devices(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on the device, in one copy; on a CPU they share the arrays' memory.

    Pinned first on CUDA: a copy from pageable memory would wait for the work queued before it.
    """
    if device.type != "cuda":
        return [torch.from_numpy(array).to(device) for array in arrays]
    starts = starts_of(arrays)
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    pack(arrays, starts, packed.numpy())
    return unpack(packed.to(device, non_blocking=True), starts, arrays)


def pack(arrays: Sequence[NDArray[Any]], starts: Sequence[int], into: NDArray[np.uint8]) -> None:
    """Copies the bytes of each array to its start in `into`."""
    for array, start in zip(arrays, starts, strict=False):
        into[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def unpack(packed: Tensor, starts: Sequence[int], like: Sequence[NDArray[Any]]) -> list[Tensor]:
    """Views of what `pack` has packed, with the dtypes and shapes of these arrays."""
    return [
        packed[start : start + array.nbytes].view(_dtype(array.dtype)).view(array.shape)
        for array, start in zip(like, starts, strict=False)
    ]


def starts_of(arrays: Sequence[NDArray[Any]]) -> list[int]:
    """Where each array begins, and where the last one ends, in bytes."""
    return [0, *np.cumsum([-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays]).tolist()]


@cache
def _dtype(dtype: "np.dtype[Any]") -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
