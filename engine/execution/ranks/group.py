"""The ranks of a replica as each of them sees the others: tensors summed, shared and gathered, in one order by all.

By gloo between processes on a CPU, by NCCL between CUDA devices. Knows tensors, but not what is computed.
"""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from engine.core.errors import DeviceLost
from engine.models.ranks.cut import Rank

dist: Any = torch.distributed  # which exports more than its stubs say

PATIENCE_SECONDS = 60.0
"""How long a rank waits for another before it counts as lost. They compute the same, at the same time."""


class Exchange(NamedTuple):
    """One tensor that all ranks exchange."""

    kind: Literal["sum", "share", "gather"]
    shape: tuple[int, ...]
    dtype: torch.dtype


class Group:
    """All ranks. Each method is called by all of them, in the same order and with tensors of the same shape.

    They raise DeviceLost if another rank is gone, or does not come. Tensors without numbers are exchanged by nobody.
    """

    def __init__(self, rank: Rank, folder: Path, device: torch.device) -> None:
        """Waits until all ranks are there; they meet in a file in `folder`, which only this user may read."""
        self.rank = rank
        self.done = 0
        """How many exchanges have begun so far."""
        self._device = device
        store = dist.FileStore(str(folder / "store"), rank.size)
        self._ranks = _nccl(store, rank) if device.type == "cuda" else _gloo(store, rank)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same bit by bit on each; in place where the tensor is contiguous.

        On a CPU a row's sum does not depend on the other rows.
        """
        tensor = tensor.contiguous()
        if self._device.type == "cpu" and self.rank.size > 2:
            # Gloo would add in an order that depends on how many rows there are.
            parts = [torch.empty_like(tensor) for _ in range(self.rank.size)]
            self._exchange(tensor, lambda: self._ranks.allgather([parts], [tensor]))
            return tensor.copy_(reduce(torch.Tensor.add_, parts))
        self._exchange(tensor, lambda: self._ranks.allreduce([tensor]))
        return tensor

    def share(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, on all ranks; the others' is overwritten."""
        tensor = tensor.contiguous()
        self._exchange(tensor, lambda: self._ranks.broadcast([tensor]))
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """On rank 0 all ranks' tensors, in their order; on the others nothing."""
        tensor = tensor.contiguous()
        leads = self.rank.number == 0
        parts = [torch.empty_like(tensor) for _ in range(self.rank.size)] if leads else []
        self._exchange(tensor, lambda: self._ranks.gather([parts] if leads else [], [tensor]))
        return parts

    def give_up(self, rest: Iterable[Exchange]) -> None:
        """Takes part in exchanges that are to come, with NaN: this rank has failed, and the others wait for it."""
        ways = {"sum": self.sum, "share": self.share, "gather": self.gather}
        try:
            for kind, shape, dtype in rest:
                value = torch.nan if dtype.is_floating_point else 0
                ways[kind](torch.full(shape, value, dtype=dtype, device=self._device))
        except RuntimeError as error:  # not even these fit into memory
            raise DeviceLost(f"rank {self.rank.number} is out of step: {error}") from error

    def _exchange(self, tensor: Tensor, begin: Callable[[], Any]) -> None:
        self.done += 1
        if not tensor.numel():
            return
        try:
            begin().wait()  # on CUDA the stream waits, not the host
        except RuntimeError as error:
            raise DeviceLost(f"rank {self.rank.number} does not reach the others: {error}") from error


def _gloo(store: Any, rank: Rank) -> Any:
    """Over the loopback device alone: all ranks are on one machine."""
    options = dist.ProcessGroupGloo._Options()  # noqa: SLF001 - no public name
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]  # noqa: SLF001
    options._timeout = timedelta(seconds=PATIENCE_SECONDS)  # noqa: SLF001
    return dist.ProcessGroupGloo(store, rank.number, rank.size, options)


def _nccl(store: Any, rank: Rank) -> Any:
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")  # ranks of one machine: nothing listens to others
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=PATIENCE_SECONDS)  # noqa: SLF001 - no public name
    return dist.ProcessGroupNCCL(store, rank.number, rank.size, options)
