"""Simulated fleets as a Markdown table, which says that nothing was run."""

import argparse
from collections.abc import Sequence
from typing import Protocol

from rich import box
from rich.table import Table

from engine import HARDWARE, Decoding, FleetFigures, Goal, Waits

NOT_RUN = "Simulated, not run."


class Simulated(Protocol):
    """One fleet."""

    @property
    def rate(self) -> float | None: ...
    @property
    def router(self) -> str: ...
    @property
    def figures(self) -> FleetFigures: ...


class Capacity(Protocol):
    """What a replica may do at once."""

    @property
    def max_running(self) -> int: ...
    @property
    def max_batch_rows(self) -> int: ...
    @property
    def kv_tokens(self) -> int: ...


def heading(args: argparse.Namespace, limits: Capacity, decoding: Decoding) -> str:
    """What one replica is, in a sentence."""
    devices = f"{args.devices} x {HARDWARE[args.hardware].name}"
    return (
        f"{args.model}, a replica on {devices} at {args.efficiency:g} of the roofline: {decoding.cache}, blocks of "
        f"{decoding.block}, {decoding.tokens_per_forward} tokens a forward; {limits.max_running} requests, "
        f"{limits.max_batch_rows:,} rows, keys and values of {limits.kv_tokens:,} tokens. {NOT_RUN}\n"
    )


def table(rows: Sequence[Simulated], goal: Goal | None, devices: int) -> Table:
    """A line for each fleet. Seconds are medians and quantiles over requests, `busy` is a share of replicas' time."""
    shown = Table(box=box.MARKDOWN, show_edge=False)
    names = ["rate", "replicas", "router", "busy", "tokens/s", "first block p50", "p95", "p99", "answer p50", "p95",
             "p99", "queued", "running", "cached", "refused", "GPU h/M tokens"]  # fmt: skip
    if goal:
        names.append(f"within {goal.seconds:g} s")
    for name in names:
        shown.add_column(name, justify="left" if name == "router" else "right", overflow="fold")
    for row in rows:
        figures = row.figures
        cells = [
            f"{row.rate or figures.requests_per_second:.4g}",
            _count(figures),
            row.router,
            f"{figures.utilisation:.0%}",
            f"{figures.tokens_per_second:,.0f}",
            *_seconds(figures.first_block),
            *_seconds(figures.answer),
            f"{figures.mean_waiting:,.1f}",
            f"{figures.mean_running:.1f}",
            f"{figures.cached_share:.0%}",
            f"{figures.refused_share:.2%}",
            _device_hours(figures, devices),
        ]
        if goal:
            cells.append(f"{figures.goal_share or 0.0:.2%}")
        shown.add_row(*cells)
    return shown


def _count(figures: FleetFigures) -> str:
    """Replicas: their number, or with an autoscaler the mean and the most."""
    mean, most = figures.mean_replicas, figures.replicas
    return str(most) if abs(mean - most) < 1e-6 else f"{mean:.1f} ({most})"


def _device_hours(figures: FleetFigures, devices: int) -> str:
    if not figures.tokens_per_second:
        return "-"
    return f"{figures.mean_replicas * devices / figures.tokens_per_second * 1e6 / 3600:.3g}"


def _seconds(waits: Waits | None) -> tuple[str, ...]:
    if waits is None:
        return ("-",) * 3
    return tuple(f"{seconds:.2f}" for seconds in (waits.p50, waits.p95, waits.p99))
