"""This machine's own peaks, measured: what `engine.roofline` needs to know of it."""

import time
from collections.abc import Callable

import torch

from engine.models.layers import linear
from engine.roofline import Hardware

SIZE = 768
"""Of the square matrices that are multiplied."""
COPIED = 2**24
"""Numbers that are copied: more than caches hold."""
OPERATORS = 200
SECONDS = 2.0
"""For each figure, in rounds of milliseconds: some of them have the machine to themselves."""


def measure_hardware(num_threads: int | None = None) -> Hardware:
    """The CPU in float32 with so many of torch's threads; the best of many rounds, so that other work counts little.

    The product is the model's own `linear`; bandwidth is that of a copy, one read and one write.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        with torch.inference_mode():
            a, b, few = torch.rand(SIZE, SIZE), torch.rand(SIZE, SIZE), torch.rand(16)
            source, target = torch.rand(COPIED), torch.empty(COPIED)

            def start_many() -> None:
                for _ in range(OPERATORS):
                    few.add(1.0)

            flops = 2 * SIZE**3 / _seconds(lambda: linear(a, b))
            bandwidth = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
            launch = _seconds(start_many) / OPERATORS
    finally:
        torch.set_num_threads(before)
    return Hardware(
        name="this CPU",
        flops=flops,
        weight_flops=flops,
        bandwidth=bandwidth,
        itemsize=4,
        weight_itemsize=4,
        launch_seconds=launch,
        launches_overlap=False,
    )


def _seconds(work: Callable[[], object]) -> float:
    work()  # the first call sets things up
    rounds: list[float] = []
    ends = time.perf_counter() + SECONDS
    while not rounds or time.perf_counter() < ends:
        started = time.perf_counter()
        work()
        rounds.append(time.perf_counter() - started)
    return min(rounds)
