"""`unmask bench roofline`: what a model can reach at most on given hardware, as tables in Markdown, JSON or a picture.

The arithmetic is the engine's; nothing is run but, with `--measure`, a few seconds of this CPU.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from engine import (
    GEOMETRIES,
    HARDWARE,
    METHODS,
    ConfigError,
    Hardware,
    Prediction,
    Step,
    Workload,
    forward_cost,
    geometry_of,
    measure_hardware,
    predict,
    steps,
    with_fp8,
    with_graphs,
)

NOT_RUN = "Predicted, not run on a GPU."
SHAPE = ("prompt", "gen", "block", "tokens_per_step")
SHOWN = tuple(method for method in METHODS if method != "reference/prefix")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def main(argv: Sequence[str]) -> int:
    """Raises ConfigError or LoadError for what the user can mend."""
    args = _parse(argv[1:])
    if args.measure:
        sys.stdout.write(_measured(measure_hardware(args.num_threads), args.num_threads))
        return 0
    draw = _pyplot() if args.plot else None
    geometry, machines = geometry_of(args.model), _machines(args)
    workloads = [Workload(batch=batch, **{name: getattr(args, name) for name in SHAPE}) for batch in args.batch]

    def run(machine: Hardware, method: str, workload: Workload) -> Prediction:
        return predict(method, geometry, machine, workload, args.max_batch_rows)

    if args.json:
        rows = [
            {"hardware": machine.name, **asdict(run(machine, method, workload))}
            for machine in machines
            for method in args.methods
            for workload in workloads
        ]
        sys.stdout.write(json.dumps({"rows": rows}, indent=2) + "\n")
        return 0
    sections = []
    for machine in machines:
        if machine.launches_overlap:
            sections += [_forwards(machine, args, workloads), _decodes(machine, args, workloads)]
        else:
            sections.append(_ratios(machine, args, workloads))
    sys.stdout.write("\n".join(sections))
    if draw:
        draw(
            {m.name: [run(with_graphs(m), n, w) for n in args.methods for w in workloads] for m in machines}, args.plot
        )
    return 0


def _machines(args: argparse.Namespace) -> list[Hardware]:
    if args.flops is None and args.bandwidth is None:
        return [HARDWARE[name] for name in args.hardware]
    if not (args.flops and args.bandwidth):
        raise ConfigError("--flops and --bandwidth go together")
    return [
        Hardware(
            name="this CPU",
            flops=args.flops * 1e9,
            weight_flops=args.flops * 1e9,
            bandwidth=args.bandwidth * 1e9,
            itemsize=4,
            weight_itemsize=4,
            launch_seconds=args.launch * 1e-6,
            launches_overlap=False,
        )
    ]


def _forwards(machine: Hardware, args: argparse.Namespace, workloads: Sequence[Workload]) -> str:
    """What one forward costs, for each kind of step that a method has at mid-canvas; the same step is shown once."""
    geometry = geometry_of(args.model)
    names: dict[Step, list[str]] = {}
    for method in (method for method in args.methods if method.startswith("engine/")):
        every = list(steps(method, workloads[0]))
        middle = every[len(every) // 2 :]  # the first block's refresh may be another
        for step in {step.kind: step for step in reversed(middle)}.values():
            names.setdefault(step, []).append(method.removeprefix("engine/"))
    lines = []
    for step, methods in names.items():
        for workload in workloads:
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
    return _markdown(f"{machine.name}, one forward at mid-canvas, as if it held all rows. {NOT_RUN}", head, lines)


def _decodes(machine: Hardware, args: argparse.Namespace, workloads: Sequence[Workload]) -> str:
    geometry, lines = geometry_of(args.model), []
    variants = (machine, with_graphs(machine), with_fp8(with_graphs(machine)))
    for method in args.methods:
        for workload in workloads:
            eager, graphs, fp8 = (predict(method, geometry, v, workload, args.max_batch_rows) for v in variants)
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
    return _markdown(f"{machine.name}, tokens a second at most. {note}", head, lines)


def _ratios(machine: Hardware, args: argparse.Namespace, workloads: Sequence[Workload]) -> str:
    geometry, lines = geometry_of(args.model), []
    for workload in workloads:
        of = {method: predict(method, geometry, machine, workload, args.max_batch_rows) for method in METHODS}
        for method in args.methods:
            seconds = of[method].cost.seconds
            lines.append(
                [
                    method,
                    str(workload.batch),
                    f"{of[method].rows:,}",
                    _digits(seconds),
                    _digits(of["reference/baseline"].cost.seconds / seconds),
                    _digits(of["reference/dual"].cost.seconds / seconds),
                ]
            )
    peaks = f"{machine.flops / 1e9:g} GFLOP/s, {machine.bandwidth / 1e9:g} GB/s, {1e6 * machine.launch_seconds:g} us"
    head = ["method", "batch", "rows", "seconds", "x baseline", "x reference dual"]
    return _markdown(f"Predicted for {peaks} an operator, float32.", head, lines)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _measured(machine: Hardware, num_threads: int | None) -> str:
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
    """With columns aligned, so that it reads on a terminal too."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def row(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |\n"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "".join([title, "\n\n", row(head), row(rule), *map(row, lines)])


def _pyplot() -> Callable[[Mapping[str, Sequence[Prediction]], Path], None]:
    """The function that draws; matplotlib is imported here and nowhere else. Raises ConfigError if it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'unmask[plot]'") from None

    def draw(panels: Mapping[str, Sequence[Prediction]], path: Path) -> None:
        """A panel for each device, a group of bars for each policy, a bar for each batch."""
        figure = Figure(figsize=(5 * len(panels), 4.2), layout="constrained")
        figure.suptitle("predicted, not run on a GPU; bfloat16, CUDA graphs", fontsize=10)
        for axes, (name, predictions) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
        ):
            methods = list(dict.fromkeys(prediction.method for prediction in predictions))
            labels = [method.removeprefix("engine/").replace("/", "\n") for method in methods]
            batches = list(dict.fromkeys(prediction.batch for prediction in predictions))
            for i, batch in enumerate(batches):
                heights = [prediction.tokens_per_second for prediction in predictions if prediction.batch == batch]
                places = [place + 0.8 * (i - (len(batches) - 1) / 2) / len(batches) for place in range(len(methods))]
                bars = axes.bar(places, heights, 0.8 / len(batches), label=f"batch {batch}")
                axes.bar_label(bars, [f"{height:,.0f}" for height in heights], fontsize=7, padding=2, rotation=90)
            axes.set(
                title=name,
                yscale="log",
                ylabel="tokens a second at most" if axes.get_subplotspec().is_first_col() else "",
            )
            axes.set_xticks(range(len(methods)), labels, fontsize=8)
            axes.margins(y=0.12)
            axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        try:
            figure.savefig(path, dpi=140)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--plot {path}: {error}") from None

    return draw


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="unmask bench roofline",
        description="What a model can reach at most on given hardware, by the operations and bytes of its steps. "
        "Real programs stay below it; ratios between policies are what it is good for.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", default="llada-8b", metavar="MODEL",
                        help=f"{', '.join(GEOMETRIES)}, or a folder or hub id [default: llada-8b]")  # fmt: skip
    parser.add_argument("--hardware", nargs="+", choices=HARDWARE, default=list(HARDWARE), help="[default: both]")
    own = parser.add_argument_group("instead of those: a CPU in float32, as --measure finds it")
    own.add_argument("--measure", action="store_true", help="measure this CPU, print that, and end")
    own.add_argument("--num-threads", type=_positive, metavar="N", help="CPU threads of torch, with --measure")
    own.add_argument("--flops", type=_rate, metavar="G", help="billions of float32 operations a second")
    own.add_argument("--bandwidth", type=_rate, metavar="G", help="billions of bytes a second")
    own.add_argument("--launch", type=_rate, default=2.0, metavar="US", help="microseconds an operator [default: 2]")
    shape = parser.add_argument_group("what is decoded")
    for name in SHAPE:
        default = getattr(Workload(), name)
        flag = "--" + name.replace("_", "-")
        shape.add_argument(flag, type=_positive, default=default, metavar="N", help=f"[default: {default}]")
    shape.add_argument("--batch", nargs="+", type=_positive, default=[1, 8, 64], help="[default: 1 8 64]")
    shape.add_argument("--methods", nargs="+", choices=METHODS, default=SHOWN, metavar="METHOD",
                       help=f"[default: {' '.join(SHOWN)}]")  # fmt: skip
    shape.add_argument("--max-batch-rows", type=_positive, default=4096, metavar="N", help="[default: 4096]")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw tokens a second to this picture")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return rate
