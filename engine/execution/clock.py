"""The time that a device works: two marks in its queue, read once the host has waited for it anyway."""

import time
from typing import Any

import torch


class DeviceClock:
    """A context: what is launched inside is timed. On a CPU, which computes at once, by the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self._begin, self._end = (_mark(device) for _ in range(2))

    def __enter__(self) -> None:
        self._begin.record()

    def __exit__(self, *_: object) -> None:
        self._end.record()

    @property
    def seconds(self) -> float:
        """Between begin and end, gaps with an empty queue included. Valid once the device has reached the end."""
        return float(self._begin.elapsed_time(self._end)) / 1000


class _HostMark:
    """A CUDA event's face over the host's clock."""

    def __init__(self) -> None:
        self.time = 0.0

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: "_HostMark") -> float:
        """Milliseconds."""
        return 1000 * (end.time - self.time)


def _mark(device: torch.device) -> Any:  # torch's events have no types
    if device.type == "cuda":
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return _HostMark()
