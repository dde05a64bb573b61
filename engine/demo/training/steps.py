"""Training steps by CUDA graphs: one for each shape and kind of batch.

A step of a small model is a thousand small kernels, which a GPU computes faster than a host launches them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from engine.demo.training.noise import Batch

Shape = tuple[torch.Size, tuple[bool, ...]]
"""Of a batch: that of its ids, and which of its tensors are None."""


class GraphedSteps:
    """Runs `step` on batches on the current stream, which must not be the default one.

    `step` must neither wait for the device nor keep tensors of a batch, and what changes from step to step must be in
    tensors that it reads. The first batch of a shape runs kernel by kernel, for libraries to settle; the second one's
    step is captured, and replayed from then on.
    """

    def __init__(self, step: Callable[[Batch], None]) -> None:
        self.step = step
        self._met: set[Shape] = set()
        self._graphs: dict[Shape, tuple[torch.cuda.CUDAGraph, Batch]] = {}

    def __call__(self, batch: Batch) -> None:
        """`batch` may be in pinned memory of the host."""
        shape = batch.ids.shape, tuple(one is None for one in batch)
        if shape not in self._met:
            self._met.add(shape)
            self.step(moved(batch))
            return
        if shape not in self._graphs:
            self._graphs[shape] = self._captured(moved(batch))
        graph, buffers = self._graphs[shape]
        for buffer, given in zip(buffers, batch, strict=True):
            if buffer is not None and given is not None:
                buffer.copy_(given, non_blocking=True)
        graph.replay()

    def _captured(self, buffers: Batch) -> tuple[torch.cuda.CUDAGraph, Batch]:
        graph = torch.cuda.CUDAGraph()
        pool = next((other.pool() for other, _ in self._graphs.values()), None)
        # Another thread pins the batches to come: only this thread's calls are held against the capture.
        with torch.cuda.graph(graph, pool, torch.cuda.current_stream(), capture_error_mode="thread_local"):
            self.step(buffers)
        return graph, buffers


def moved(batch: Batch) -> Batch:
    """The batch on the GPU, without a wait for it."""

    def one(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to("cuda", non_blocking=True)

    return Batch(*map(one, batch))  # type: ignore[arg-type]
