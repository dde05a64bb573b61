"""CUDA graphs of small steps: the launches of a forward, recorded once for each of a few numbers of rows.

The host takes longer to start the kernels of a small step one by one than the device takes to run them; a graph starts
all of them at once. What a graph reads lies in buffers of its own, all of one shape and always in the same place: a
batch is padded to it, and one copy on the device fills them. Knows flat batches, and a forward as a function; no model,
no scoring and no requests.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.core.config import EngineConfig
from engine.execution.batch import Batch, FlatBatch
from engine.kernels.attention import TILE_ROWS, Layout, PagedRows, Span
from engine.kernels.transfer import Upload, pack, starts_of, to_device, unpack

logger = logging.getLogger(__name__)

ROWS_APART, MOST_ROWS = 32, 512
"""How far the graphs' numbers of rows are apart, and the largest. A product computes rows by the 64 or more, so that
up to 31 of padding cost next to nothing. With more rows a GPU computes 7 B parameters for longer than the host takes to
launch them (`engine.bench.roofline`), and a graph would have nothing to hide. Chosen, not measured."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Of a hidden row: how far a replay may be from the forward, relative to its length. They run the same kernels."""

Forward = Callable[[Batch], Tensor]
"""A batch -> hidden rows of its targets, [targets, dim]. Reads no spans of the layout, only its page tables."""


class Captured(NamedTuple):
    """Launches that were recorded, and what they write."""

    replay: Callable[[], None]
    """Launches all of them. The host does not wait."""
    hidden: Tensor
    """What the recorded function returned. The next replay of any graph may overwrite it: all share one memory."""


Capture = Callable[[Callable[[], Tensor]], Captured]
"""Records what a function launches. The function may be called more than once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of all tensors that a graph reads."""

    rows: int
    """Rows, and targets, of the padded batch."""
    sequences: int
    """The most plans of a batch."""
    max_model_len: int
    """The most positions of a sequence."""
    page_size: int
    dump: int
    """The slot that rows of padding write."""

    def takes(self, flat: FlatBatch) -> bool:
        """Whether the batch can be padded to it. No graph returns attention weights, has rows that go through an
        adapter, layers with a window, or rows that carry a vector beside their token."""
        is_small = max(len(flat.ids), len(flat.logit_rows)) <= self.rows and len(flat.spans) <= self.sequences
        is_plain = flat.adapted is None and flat.firsts is None and flat.open_rows is None
        return is_small and is_plain and not flat.watched and not flat.judged

    def arrays(self, flat: FlatBatch) -> tuple[NDArray[Any], ...]:
        """What a graph reads of the batch: ids, positions, write slots, logit rows, tiles, horizons and page table.

        Padding belongs to no sequence: rows see nothing, tiles have no rows, targets stand for row 0.
        """
        padded = flat.padded(self.rows, self.dump)
        tiles, horizons, table = padded.pages
        # Each span has at most one tile that is not full.
        most_tiles, most_pages = self.sequences + self.rows // TILE_ROWS, -(-self.max_model_len // self.page_size)
        return (
            padded.ids,
            padded.positions,
            padded.write_slots,
            _grown(padded.logit_rows, self.rows),
            _grown(tiles, most_tiles, 3),
            horizons,
            _grown(table, self.sequences, most_pages),
        )


class Graph:
    """A forward of one shape, recorded, and the buffers that it reads."""

    def __init__(self, shape: Shape, forward: Forward, device: torch.device, capture: Capture) -> None:
        self.shape = shape
        arrays = shape.arrays(_rows_of_one(0, shape.page_size))
        self._inputs = to_device(_packed(arrays), device)
        *rows, tiles, horizons, table = unpack(self._inputs, starts_of(arrays), arrays)
        ids, positions, slots, logit_rows = rows
        paged = PagedRows(tiles, horizons, table, shape.page_size)
        layout = Layout(np.zeros(shape.rows, np.int64), (), device, paged)
        batch = Batch(ids, positions, slots, logit_rows, layout, ())
        self._forward: Callable[[], Tensor] = partial(forward, batch)
        self._captured = capture(self._forward)

    def add(self, flat: FlatBatch, upload: Upload) -> "Callable[[], Replay]":
        """Adds what the device reads. The function that it returns makes the replay, once the upload is sent."""
        inputs = upload.add(_packed(self.shape.arrays(flat)))
        return lambda: Replay(self, inputs.tensor, len(flat.logit_rows))

    def run(self, inputs: Tensor) -> Tensor:
        """Packed inputs -> [rows, dim], which are valid until a graph runs again."""
        self._inputs.copy_(inputs)
        self._captured.replay()
        return self._captured.hidden

    def is_right(self) -> bool:
        """Whether a replay computes what the forward does, of rows that were not there when it was captured.

        Writes slots of the pool from the first on. Waits for the device.
        """
        shape = self.shape
        trial = _rows_of_one(min(shape.rows, shape.max_model_len, shape.dump), shape.page_size)
        replayed = self.run(to_device(_packed(shape.arrays(trial)), self._inputs.device))
        ours, theirs = (hidden[: len(trial.ids)].float() for hidden in (replayed, self._forward()))
        most = TOLERANCE[replayed.dtype] * theirs.norm(dim=-1)
        return bool(((ours - theirs).norm(dim=-1) <= most).all())


@dataclass(frozen=True, slots=True)
class Replay:
    """A batch that goes through a graph."""

    graph: Graph
    inputs: Tensor
    """On the device, packed as the graph's own."""
    targets: int

    def run(self) -> Tensor:
        """Hidden rows of the targets, [targets, dim], which are valid until a graph runs again."""
        return self.graph.run(self.inputs)[: self.targets]


class Graphs:
    """Graphs of several shapes."""

    def __init__(self, graphs: Sequence[Graph]) -> None:
        self._graphs = sorted(graphs, key=lambda graph: graph.shape.rows)

    @property
    def shapes(self) -> list[Shape]:
        """Theirs, the smallest first."""
        return [graph.shape for graph in self._graphs]

    def taking(self, flat: FlatBatch) -> Graph | None:
        """The smallest graph that takes the batch."""
        return next((graph for graph in self._graphs if graph.shape.takes(flat)), None)


def shapes_of(config: EngineConfig, max_model_len: int, max_batch_rows: int, dump: int) -> list[Shape]:
    """The shapes that an engine captures."""
    return [
        Shape(
            rows=rows,
            sequences=min(rows, config.max_running_requests),
            max_model_len=max_model_len,
            page_size=config.page_size,
            dump=dump,
        )
        for rows in range(ROWS_APART, min(MOST_ROWS, max_batch_rows) + 1, ROWS_APART)
    ]


@torch.inference_mode()
def record(
    shapes: Sequence[Shape], forward: Forward, device: torch.device, capture: Capture | None = None
) -> Graphs | None:
    """Captures a graph of each shape, and tries it. None, with a warning, if any cannot be captured or is not right.

    No request may hold slots yet. The largest is captured first: the others find room in its memory.
    """
    begun = time.perf_counter()
    try:
        capture = capture or _on_cuda()
        largest_first = sorted(shapes, key=lambda shape: -shape.rows)
        graphs = [Graph(shape, forward, device, capture) for shape in largest_first]
        wrong = [graph.shape.rows for graph in graphs if not graph.is_right()]
        cause = f"those of {wrong} rows compute something else than the model" if wrong else None
    except Exception as error:  # noqa: BLE001 - whatever CUDA or a library raises: the model can do without
        cause = f"{type(error).__name__}: {error}"
    if cause:
        logger.warning("CUDA graphs do not work here (%s): all kernels are launched one by one", cause)
        return None
    logger.info("captured %d CUDA graphs in %.1f s", len(graphs), time.perf_counter() - begun)
    return Graphs(graphs)


def _on_cuda() -> Capture:
    """Captures on the current CUDA device; all that it captures shares one memory."""
    pool = torch.cuda.graph_pool_handle()

    def capture(work: Callable[[], Tensor]) -> Captured:
        work()  # what libraries load and compile at their first call cannot be captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            hidden = work()
        return Captured(graph.replay, hidden)

    return capture


def _rows_of_one(rows: int, page_size: int) -> FlatBatch:
    """All rows of one sequence, in the first slots of the pool, each of them a target; without rows, no sequence."""
    every = np.arange(rows)
    return FlatBatch(
        ids=every % 2,
        positions=every,
        write_slots=every,
        horizons=np.full(rows, rows),
        logit_rows=every,
        spans=(Span(0, rows, every),) if rows else (),
        watched=(),
        page_size=page_size,
    )


def _packed(arrays: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
    """The arrays one after the other, as `transfer.unpack` finds them."""
    starts = starts_of(arrays)
    packed = np.empty(starts[-1], np.uint8)
    pack(arrays, starts, packed)
    return packed


def _grown(array: NDArray[Any], *shape: int) -> NDArray[Any]:
    """The array at the beginning of zeros of this shape."""
    grown = np.zeros(shape, array.dtype)
    grown[tuple(map(slice, array.shape))] = array
    return grown
