"""`unmask bench host`: what a step costs the host, and how much longer it takes beside streaming clients."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from engine import HOST_PARTS, HostFigures, bench_host
from server.arguments import Parser, count, positive
from server.bench.streaming import StreamingFigures, bench_streaming
from server.console import output, progress_bar


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError for errors that the user can fix."""
    given = _parse(argv[1:])
    figures = _run(given.requests, given.steps, is_traced=given.trace)
    streaming = _run_streaming(given.clients) if given.clients else None
    if given.json:
        rows = [{"requests": row.requests, "total": row.total, **row.microseconds} for row in figures]
        printed: dict[str, object] = {"steps": given.steps, "microseconds": rows}
        if streaming:
            printed["streaming"] = asdict(streaming) | {"ratio": streaming.ratio}
        sys.stdout.write(json.dumps(printed, indent=2) + "\n")
    else:
        console = output(100)
        console.print(_table(figures, given.steps))
        if streaming:
            console.print(_streaming_table(streaming))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="unmask bench host",
        description="What a step costs the host, beside the forward and its scoring, which needs no model; then how "
        "much longer a whole step of the bundled model takes in a server with streaming clients.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--requests", nargs="+", type=positive, default=(1, 16, 64, 256), metavar="N", help="requests that run at once"
    )
    parser.add_argument("--steps", type=positive, default=64, metavar="N", help="steps that are timed of each crowd")
    parser.add_argument(
        "--clients", type=count, default=64, metavar="N", help="clients that stream; 0 leaves this part out"
    )
    parser.add_argument("--trace", action="store_true", help="each request is watched; streaming clients never are")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of the table")
    return parser.parse_args(argv)


def _run(crowds: Sequence[int], steps: int, *, is_traced: bool) -> list[HostFigures]:
    with progress_bar() as bar:
        task = bar.add_task("host", total=None)

        def progress(done: int, total: int, size: int) -> None:
            bar.update(task, completed=done, total=total, description=f"{size} requests")

        return bench_host(crowds, steps, progress, is_traced=is_traced)


def _run_streaming(clients: int) -> StreamingFigures:
    with progress_bar() as bar:
        task = bar.add_task(f"{clients} clients", total=None)
        return asyncio.run(bench_streaming(clients, lambda done, total: bar.update(task, completed=done, total=total)))


def _streaming_table(figures: StreamingFigures) -> Table:
    table = Table(
        title="a step of the bundled model, by its engine's clock",
        caption=f"{figures.clients} clients; steps take {figures.ratio:.2f} times as long with a server",
    )
    for title in ("", "requests a step", "microseconds a request-step"):
        table.add_column(title, justify="right")
    for name, cost in (("engine alone", figures.alone), ("streaming", figures.streaming)):
        table.add_row(name, f"{cost.requests:.1f}", f"{cost.microseconds:.0f}")
    return table


def _table(figures: Sequence[HostFigures], steps: int) -> Table:
    table = Table(
        title="microseconds of the host's CPU time for a step of one request",
        caption=f"medians of {steps} steps; prompt 896, canvas 1024, blocks of 32, cache dual, unmask threshold",
    )
    for title in ("requests", *HOST_PARTS, "all"):
        table.add_column(title, justify="right")
    for row in figures:
        parts = [f"{row.microseconds[part]:.1f}" for part in HOST_PARTS]
        table.add_row(f"{row.requests:,}", *parts, f"{row.total:.1f}")
    return table
