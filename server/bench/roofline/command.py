"""`unmask bench roofline`: the most that a model can reach on given hardware, as Markdown tables, JSON or a picture.

The engine does the arithmetic. Nothing is run, except for a few seconds on this CPU with `--measure`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from engine import (
    GEOMETRIES,
    HARDWARE,
    METHODS,
    ConfigError,
    DiffusionParams,
    Hardware,
    Method,
    Workload,
    measure_hardware,
    with_graphs,
    with_ranks,
)
from server.arguments import Parser, positive, rate
from server.bench.roofline.plot import pyplot
from server.bench.roofline.tables import Comparison, decodes, forwards, measured, ratios

SHAPE = ("prompt", "gen", "block", "tokens_per_step")
_BOUNDED = tuple(f"engine/{cache}+{DiffusionParams().lookahead}" for cache in ("dual", "window"))
SHOWN = tuple(method for method in (*METHODS, *_BOUNDED) if method != "reference/prefix")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError or LoadError for errors that the user can fix."""
    args = _parse(argv[1:])
    for name in args.methods:
        Method.named(name)
    if args.measure:
        sys.stdout.write(measured(measure_hardware(args.num_threads), args.num_threads))
        return 0
    draw = pyplot() if args.plot else None
    machines = _machines(args)
    workloads = [Workload(batch=batch, **{name: getattr(args, name) for name in SHAPE}) for batch in args.batch]
    asked = Comparison(model=args.model, methods=args.methods, workloads=workloads, max_batch_rows=args.max_batch_rows)
    pairs = [(method, workload) for method in args.methods for workload in workloads]
    if args.json:
        rows = [{"hardware": m.name, **asdict(asked.predicted(m, *pair))} for m in machines for pair in pairs]
        sys.stdout.write(json.dumps({"rows": rows}, indent=2) + "\n")
    else:
        gpus = [
            table(machine, asked) for machine in machines if machine.launches_overlap for table in (forwards, decodes)
        ]
        cpus = [ratios(machine, asked) for machine in machines if not machine.launches_overlap]
        sys.stdout.write("\n".join([*gpus, *cpus]))
    if draw:
        draw({m.name: [asked.predicted(with_graphs(m), *pair) for pair in pairs] for m in machines}, args.plot)
    return 0


def _machines(args: argparse.Namespace) -> list[Hardware]:
    if args.flops is None and args.bandwidth is None:
        return [with_ranks(HARDWARE[name], args.tensor_parallel_size) for name in args.hardware]
    if args.tensor_parallel_size > 1:
        raise ConfigError("--tensor-parallel-size goes with --hardware, of which the links between devices are known")
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


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="unmask bench roofline",
        description="What a model can reach at most on given hardware, by the operations and bytes of its steps. "
        "Real programs stay below it; ratios between policies are what it is good for.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", default="llada-8b", metavar="MODEL",
                        help=f"{', '.join(GEOMETRIES)}, or a folder or hub id [default: llada-8b]")  # fmt: skip
    parser.add_argument("--hardware", nargs="+", choices=HARDWARE, default=["h100", "h200"],
                        metavar="GPU", help=f"{', '.join(HARDWARE)} [default: h100 h200]")  # fmt: skip
    parser.add_argument("--tensor-parallel-size", type=positive, default=1, metavar="N",
                        help="devices that compute the model together [default: 1]")  # fmt: skip
    own = parser.add_argument_group("instead of those: a CPU in float32, as --measure finds it")
    own.add_argument("--measure", action="store_true", help="measure this CPU, print that, and end")
    own.add_argument("--num-threads", type=positive, metavar="N", help="CPU threads of torch, with --measure")
    own.add_argument("--flops", type=rate, metavar="G", help="billions of float32 operations a second")
    own.add_argument("--bandwidth", type=rate, metavar="G", help="billions of bytes a second")
    own.add_argument("--launch", type=rate, default=2.0, metavar="US", help="microseconds an operator [default: 2]")
    shape = parser.add_argument_group("what is decoded")
    for name in SHAPE:
        default = getattr(Workload(), name)
        flag = "--" + name.replace("_", "-")
        shape.add_argument(flag, type=positive, default=default, metavar="N", help=f"[default: {default}]")
    shape.add_argument("--batch", nargs="+", type=positive, default=[1, 8, 64], help="[default: 1 8 64]")
    shape.add_argument("--methods", nargs="+", default=SHOWN, metavar="METHOD",
                       help=f"[default: {' '.join(SHOWN)}]")  # fmt: skip
    shape.add_argument("--max-batch-rows", type=positive, default=4096, metavar="N", help="[default: 4096]")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw tokens a second to this picture")
    return parser.parse_args(argv)
