"""Peak rates of machines: GPUs by their data sheets, this CPU by measurement."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from engine.core.errors import ConfigError
from engine.kernels.products import linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Peaks: rates in operations or bytes a second. A multiplication and an addition are two operations."""

    name: str
    flops: float
    """Of dense products in the dtype of the activations."""
    weight_flops: float
    """Of products with weights, where these are of another dtype."""
    bandwidth: float
    """Of the memory that holds weights and KV."""
    itemsize: int
    """Bytes of an activation, and of a number of keys and values that are no codes."""
    weight_itemsize: float
    launch_seconds: float = 0.0
    """Seconds that the host takes to start a kernel."""
    launches_overlap: bool = True
    """Whether the host starts kernels while others run, so that the longer time counts; on a CPU the times add up."""
    memory_bytes: int | None = None
    link_bandwidth: float | None = None
    """Bytes a second that one device sends to the others of its machine; None is no link."""
    ranks: int = 1
    """Devices that compute one model together, each with its part."""
    fp8_speedup: float = 1.0
    """Speedup of its FP8 products over bfloat16; 1 where it has none."""

    @property
    def ridge(self) -> float:
        """Operations a byte above which a product of weights is compute-bound."""
        return self.weight_flops / self.bandwidth


def _gpu(
    name: str, flops: float, bandwidth: float, gigabytes: int, link_bandwidth: float, fp8_speedup: float = 2.0
) -> Hardware:
    return Hardware(
        name=name,
        flops=flops,
        weight_flops=flops,
        bandwidth=bandwidth,
        itemsize=2,
        weight_itemsize=2,
        launch_seconds=5e-6,
        memory_bytes=gigabytes * 10**9,
        link_bandwidth=link_bandwidth,
        fp8_speedup=fp8_speedup,
    )


HARDWARE: Mapping[str, Hardware] = {
    "h100": _gpu("H100 SXM", 989.4e12, 3.35e12, 80, 450e9),
    "h200": _gpu("H200 SXM", 989.4e12, 4.8e12, 141, 450e9),
    "a100": _gpu("A100 SXM 80 GB", 312e12, 2.039e12, 80, 300e9, fp8_speedup=1.0),
    "rtx4090": _gpu("RTX 4090", 165.2e12, 1.008e12, 24, 32e9),
}
"""bfloat16 without sparsity, summed in float32, by NVIDIA's data sheets. Links, in one direction: NVLink, and PCIe 4.0
x16 where there is none. 5 us to start a kernel are assumed."""


def with_graphs(hardware: Hardware) -> Hardware:
    """With kernels that the device starts itself (CUDA graphs), and one attention kernel for all requests."""
    return replace(hardware, launch_seconds=0.0)


def with_ranks(hardware: Hardware, ranks: int) -> Hardware:
    """So many such devices for one model. Raises ConfigError if nothing is known of a link between them."""
    if ranks > 1 and hardware.link_bandwidth is None:
        raise ConfigError(f"tensor_parallel_size is {ranks}, but of {hardware.name} no link to others is known")
    return replace(hardware, ranks=ranks)


def with_fp8(hardware: Hardware) -> Hardware:
    """With weights of one byte and their products at FP8's rate; attention and KV are unchanged."""
    return replace(hardware, weight_itemsize=1.0, weight_flops=hardware.weight_flops * hardware.fp8_speedup)


SIZE = 768
"""Rows and columns of the matrices that are multiplied."""
COPIED = 2**24
"""Numbers that are copied: more than caches hold."""
OPERATORS = 200
SECONDS = 2.0
"""Seconds of measuring for each figure, in rounds of milliseconds, so that some rounds run undisturbed."""


def measure_hardware(num_threads: int | None = None) -> Hardware:
    """Measures this CPU in float32 with `num_threads` of torch. Best of many rounds, so that other load matters little.

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
