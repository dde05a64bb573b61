"""Watches a device at work: where the host waits for it, and what is launched and copied, by torch's own tools."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from engine.bench.timed_run import now

_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchCooperativeKernel", "cudaGraphLaunch")
_SYNCHRONISES = "called a synchronizing CUDA operation"


class Event(NamedTuple):
    """One line of a profile."""

    name: str
    is_on_device: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What a piece of work did to its device."""

    launches: int
    copies_to_device: int
    copies_to_host: int
    busy_seconds: float
    """Seconds of kernels and copies on the device, one after the other."""

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Profile":
        events = list(events)
        on_device = [event for event in events if event.is_on_device]
        return cls(
            launches=sum(event.name.startswith(_LAUNCHES) for event in events if not event.is_on_device),
            copies_to_device=sum(event.name.startswith("Memcpy HtoD") for event in on_device),
            copies_to_host=sum(event.name.startswith("Memcpy DtoH") for event in on_device),
            busy_seconds=sum(event.seconds for event in on_device),
        )


@contextmanager
def waits() -> Iterator[list[str]]:
    """What happens inside is watched: the list has a place, file and line, for each time that the host waits."""
    places: list[str] = []
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield places
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
    own = (warning for warning in caught if _SYNCHRONISES in str(warning.message))
    places += [f"{'/'.join(warning.filename.split('/')[-2:])}:{warning.lineno}" for warning in own]


def profile_of(device: torch.device, work: Callable[[], object]) -> Profile:
    """Runs the work under torch's profiler, which itself makes it slower."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities):  # the first profile sets up the library, and misses events
            torch.empty(1, device=device).fill_(0)
    with profile(activities=activities) as profiler:
        work()
        now(device)
    return Profile.of(
        Event(event.name, event.device_type.name == "CUDA", 1e-6 * event.time_range.elapsed_us())
        for event in profiler.events()
    )
