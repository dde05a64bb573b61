"""Copies host arrays and numbers to the device without making the host wait for it."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def fill(tensor: Tensor, places: tuple[Tensor, ...], value: float) -> None:
    """`tensor[places] = value`, which itself would copy from pageable memory on CUDA and wait for all queued work."""
    tensor.index_put_(places, tensor.new_full((), value))


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor on the device.

    Pinned first on CUDA: a copy from pageable memory would wait for the work queued before it.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
