"""Predictions as Markdown tables, aligned for terminals. Every table of a GPU says that it was predicted, not run."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine import (
    Hardware,
    Prediction,
    Step,
    Workload,
    forward_cost,
    geometry_of,
    predict,
    steps,
    with_fp8,
    with_graphs,
)

BASES = ("reference/baseline", "reference/dual")
"""The methods to which the speed of the others is compared in the tables of CPUs."""
NOT_RUN = "Predicted, not run on a GPU."


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is predicted for each machine: one model, each method with each workload."""

    model: str
    methods: Sequence[str]
    workloads: Sequence[Workload]
    """They differ only in the batch."""
    max_batch_rows: int

    def predicted(self, machine: Hardware, method: str, workload: Workload) -> Prediction:
        return predict(method, geometry_of(self.model), machine, workload, self.max_batch_rows)


def named(machine: Hardware) -> str:
    """Its name, with the number of them where one model is on several."""
    return machine.name if machine.ranks == 1 else f"{machine.ranks} x {machine.name}"


def forwards(machine: Hardware, comparison: Comparison) -> str:
    """The cost of one forward, for each kind of step of each method at mid-canvas. Equal steps share a line."""
    geometry = geometry_of(comparison.model)
    names: dict[Step, list[str]] = {}
    for method in (method for method in comparison.methods if method.startswith("engine/")):
        every = list(steps(method, comparison.workloads[0]))
        middle = every[len(every) // 2 :]  # the first block's refresh may differ
        for step in {step.kind: step for step in reversed(middle)}.values():
            names.setdefault(step, []).append(method.removeprefix("engine/"))
    lines = []
    for step, methods in names.items():
        for workload in comparison.workloads:
            cost = forward_cost(geometry, with_graphs(machine), step, workload.batch)
            lines.append(
                [
                    f"{', '.join(methods)}: {step.kind}",
                    str(workload.batch),
                    f"{step.rows * workload.batch:,}",
                    f"{cost.flops / 1e12:,.2f}",
                    f"{cost.bytes / 1e9:,.1f}",
                    f"{cost.flops / cost.bytes:,.0f}",
                    f"{1e3 * cost.seconds:,.2f}",
                    f"{cost.compute_share:.0%}",
                ]
            )
    head = ["forward", "batch", "rows", "TFLOP", "GB", "FLOP a byte", "ms", "compute-bound"]
    whose = "" if machine.ranks == 1 else ", of which each device has this part"
    title = f"{named(machine)}, one forward at mid-canvas, as if it held all rows{whose}. {NOT_RUN}"
    return _markdown(title, head, lines)


def decodes(machine: Hardware, comparison: Comparison) -> str:
    """The speed of each whole workload: eager, with CUDA graphs, and with CUDA graphs and FP8 weights."""
    lines = []
    variants = (machine, with_graphs(machine), with_fp8(with_graphs(machine)))
    for method in comparison.methods:
        for workload in comparison.workloads:
            eager, graphs, fp8 = (comparison.predicted(variant, method, workload) for variant in variants)
            mark = "" if graphs.fits else " *"
            lines.append(
                [
                    method.removeprefix("engine/"),
                    str(workload.batch) + mark,
                    f"{eager.rows / workload.batch:,.0f}",
                    f"{eager.forwards:,}",
                    f"{graphs.cost.compute_share:.0%}",
                    *(f"{prediction.tokens_per_second:,.0f}" for prediction in (eager, graphs, fp8)),
                ]
            )
    head = ["method", "batch", "rows a request", "forwards", "compute-bound", "eager", "CUDA graphs", "graphs + FP8"]
    note = f"{NOT_RUN} *: canvases and bfloat16 weights do not fit into nine tenths of {_gigabytes(machine)}."
    return _markdown(f"{named(machine)}, tokens a second at most. {note}", head, lines)


def ratios(machine: Hardware, comparison: Comparison) -> str:
    """The table to compare with `unmask bench decode` on the same machine."""
    lines = []
    for workload in comparison.workloads:
        of = {method: comparison.predicted(machine, method, workload) for method in (*comparison.methods, *BASES)}
        for method in comparison.methods:
            seconds = of[method].cost.seconds
            lines.append(
                [
                    method,
                    str(workload.batch),
                    f"{of[method].rows:,}",
                    _digits(seconds),
                    _digits(of[BASES[0]].cost.seconds / seconds),
                    _digits(of[BASES[1]].cost.seconds / seconds),
                ]
            )
    peaks = f"{machine.flops / 1e9:g} GFLOP/s, {machine.bandwidth / 1e9:g} GB/s, {1e6 * machine.launch_seconds:g} us"
    head = ["method", "batch", "rows", "seconds", "x baseline", "x reference dual"]
    return _markdown(f"Predicted for {peaks} an operator, float32.", head, lines)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def measured(machine: Hardware, num_threads: int | None) -> str:
    """The measured figures, and the command that uses them."""
    flops, bandwidth, launch = machine.flops / 1e9, machine.bandwidth / 1e9, machine.launch_seconds * 1e6
    threads = f"{num_threads} threads" if num_threads else "torch's own number of threads"
    return (
        f"{flops:.1f} GFLOP/s in float32 products, {bandwidth:.1f} GB/s in a copy, {launch:.1f} us an operator, "
        f"{threads}\nunmask bench roofline --model small --flops {flops:.3g} --bandwidth {bandwidth:.3g} "
        f"--launch {launch:.2g} --batch 1\n"
    )


def _gigabytes(machine: Hardware) -> str:
    return f"{(machine.memory_bytes or 0) / 1e9:.0f} GB"


def _markdown(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def row(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |\n"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "".join([title, "\n\n", row(head), row(rule), *map(row, lines)])
