"""`unmask bench host`: what a step costs the host, as a table or JSON. The measuring itself is the engine's."""

import argparse
import json
import sys
from collections.abc import Sequence

from rich.table import Table

from engine import HOST_PARTS, HostFigures, bench_host
from server.arguments import Parser, positive
from server.console import output, progress_bar


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError for errors that the user can fix."""
    given = _parse(argv[1:])
    figures = _run(given.requests, given.steps)
    if given.json:
        rows = [{"requests": row.requests, "total": row.total, **row.microseconds} for row in figures]
        sys.stdout.write(json.dumps({"steps": given.steps, "microseconds": rows}, indent=2) + "\n")
    else:
        output(100).print(_table(figures, given.steps))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="unmask bench host",
        description="What a step costs the host, beside the forward and its scoring. Loads no model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--requests", nargs="+", type=positive, default=(1, 16, 64, 256), metavar="N", help="requests that run at once"
    )
    parser.add_argument("--steps", type=positive, default=64, metavar="N", help="steps that are timed of each crowd")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of the table")
    return parser.parse_args(argv)


def _run(crowds: Sequence[int], steps: int) -> list[HostFigures]:
    with progress_bar() as bar:
        task = bar.add_task("host", total=None)

        def progress(done: int, total: int, size: int) -> None:
            bar.update(task, completed=done, total=total, description=f"{size} requests")

        return bench_host(crowds, steps, progress)


def _table(figures: Sequence[HostFigures], steps: int) -> Table:
    table = Table(
        title="microseconds of the host for a step of one request",
        caption=f"medians of {steps} steps; prompt 896, canvas 1024, blocks of 32, cache dual, unmask threshold",
    )
    for title in ("requests", *HOST_PARTS, "all"):
        table.add_column(title, justify="right")
    for row in figures:
        parts = [f"{row.microseconds[part]:.1f}" for part in HOST_PARTS]
        table.add_row(f"{row.requests:,}", *parts, f"{row.total:.1f}")
    return table
