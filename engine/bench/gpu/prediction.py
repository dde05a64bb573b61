"""What `engine.bench.roofline` predicts of the sample that is timed: for one block of all requests, and as a table.

A sample is the first `BLOCKS` blocks of the workload; predicted and timed is the last of them. Runs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from engine.bench.hardware import Hardware, with_graphs
from engine.bench.roofline.operators import Cost
from engine.bench.roofline.prediction import forward_cost, geometry_of
from engine.bench.roofline.steps import Step, steps
from engine.bench.timed_run import Workload
from engine.execution.graphs import MOST_ROWS
from engine.models.synthetic import SHIFTS

METHODS = ("engine/dual+32", "engine/window+32")
BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Block:
    """One block of all requests together: a refresh, and the steps that follow it."""

    refresh_seconds: float
    step_seconds: float
    """Of one of them."""
    steps: int
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / (self.refresh_seconds + self.steps * self.step_seconds)


@dataclass(frozen=True, slots=True)
class Predicted:
    """The last block of a sample as if each forward held all requests."""

    block: Block
    refresh: Cost
    step: Cost
    """Of the step in its middle."""


def sample(model: str, method: str, workload: Workload) -> list[list[Step]]:
    """For each block of the sample: the steps of one request, the first of which is the refresh.

    A model whose logits are shifted computes one more row, where the block's first token is read, unless it has all.
    """
    shift, a_block = SHIFTS.get(model, 0), workload.block // workload.tokens_per_step
    every = [
        replace(step, rows=min(step.rows + shift, step.visible))
        for step in islice(steps(method, workload), BLOCKS * a_block)
    ]
    return [every[first : first + a_block] for first in range(0, len(every), a_block)]


def predict_block(model: str, hardware: Hardware, method: str, workload: Workload) -> Predicted:
    """`model` is a name in `engine.models.synthetic.SIZES`."""
    geometry, (opening, *others) = geometry_of(model), sample(model, method, workload)[-1]
    refresh, step = (
        forward_cost(geometry, _started(hardware, one.rows * workload.batch), one, workload.batch)
        for one in (opening, others[len(others) // 2])
    )
    block = Block(refresh.seconds, step.seconds, len(others), workload.batch * workload.block)
    return Predicted(block, refresh, step)


def table(models: Sequence[str], hardware: Hardware, requests: Sequence[int]) -> str:
    """The predictions for one machine, as Markdown."""
    head = ("model", "method", "requests", "block step, ms", "refresh, ms", "tokens/s")
    lines = [head, ("---", "---", *["---:"] * 4)]
    for model in models:
        for method in METHODS:
            for workload in (Workload(batch=batch) for batch in requests):
                block = predict_block(model, hardware, method, workload).block
                times = (f"{1e3 * seconds:,.2f}" for seconds in (block.step_seconds, block.refresh_seconds))
                mark = "" if _fits(model, hardware, method, workload) else " *"
                named = (model, method.removeprefix("engine/"), f"{workload.batch}{mark}")
                lines.append((*named, *times, f"{block.tokens_per_second:,.0f}"))
    title = f"{hardware.name}. Predicted, not run on a GPU. *: does not fit into nine tenths of its memory."
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def _started(hardware: Hardware, rows: int) -> Hardware:
    """The same where a CUDA graph starts the kernels of a forward of so many rows, if one does."""
    return with_graphs(hardware) if rows <= MOST_ROWS else hardware


def _fits(model: str, hardware: Hardware, method: str, workload: Workload) -> bool:
    """Whether weights and the KV of all visible positions do."""
    geometry, visible = geometry_of(model), sample(model, method, workload)[-1][0].visible
    kv = 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim * hardware.itemsize
    taken = geometry.num_parameters * hardware.weight_itemsize + workload.batch * visible * kv
    return hardware.memory_bytes is None or taken <= 0.9 * hardware.memory_bytes
