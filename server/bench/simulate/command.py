"""`unmask bench simulate`: simulates each fleet that they name, and prints a table, JSON or a picture.

The engine has the events. Only results go to standard output; nothing is loaded and no server is asked.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.progress import Progress

from engine import (
    Arrival,
    EngineConfig,
    FleetFigures,
    FleetPlan,
    Goal,
    Scaling,
    Traffic,
    decoding_of,
    replica_of,
)
from server.bench.simulate.arrivals import read_trace
from server.bench.simulate.flags import parse
from server.bench.simulate.plot import pyplot
from server.bench.simulate.show import heading, table
from server.console import output, progress_bar


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fleet that was simulated."""

    rate: float | None
    """Requests a second, in the mean; None is a trace's own."""
    router: str
    figures: FleetFigures


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError or LoadError for errors that the user can fix."""
    args = parse(argv[1:])
    draw = pyplot() if args.plot else None
    plans = _plans(args)
    with progress_bar() as bar:
        rows = [row for plan in plans for row in _simulated(args, plan, bar)]
    if args.json:
        shown = [{"rate": row.rate, "router": row.router, **asdict(row.figures)} for row in rows]
        sys.stdout.write(json.dumps({"rows": shown}, indent=2) + "\n")
    else:
        console = output(200)
        first = plans[0]
        console.print(heading(args, first.limits, first.decoding), highlight=False, soft_wrap=True)
        console.print(table(rows, first.goal, args.devices), highlight=False)
    if draw:
        draw(rows, args.plot)
    return 0


def _plans(args: argparse.Namespace) -> list[FleetPlan]:
    """One for each router."""
    decoding = decoding_of(
        args.model,
        cache=args.cache,
        lookahead=args.lookahead,
        block=args.block_length,
        tokens_per_forward=args.tokens_per_forward,
    )
    config = EngineConfig(
        model=args.model,
        kv_dtype=args.kv_dtype,
        max_model_len=args.max_model_len,
        max_batch_rows=args.max_batch_rows,
        max_running_requests=args.max_running_requests,
        max_queued_requests=args.max_queued_requests,
        kv_cache_tokens=args.kv_cache_tokens,
    )
    machine, limits = replica_of(config, decoding, args.hardware, devices=args.devices, efficiency=args.efficiency)
    scaling = None
    if args.autoscale:
        least, most = args.autoscale
        scaling = Scaling(
            least=least,
            most=most,
            per_replica=args.scale_at,
            start_seconds=args.start_seconds,
            down_after=args.down_after,
        )
    return [
        FleetPlan(
            timer=machine,
            decoding=decoding,
            limits=limits,
            router=router,
            scaling=scaling,
            prefix_hits=args.prefix_hits,
            warm_up=args.warm_up,
            goal=Goal(seconds=args.slo_seconds, share=args.slo_share, of=args.slo_of) if args.slo_seconds else None,
            seed=args.seed,
        )
        for router in args.router
    ]


def _simulated(args: argparse.Namespace, plan: FleetPlan, bar: Progress) -> Iterator[Row]:
    for at, arrivals in _arrivals(args):
        name = plan.router if at is None else f"{plan.router}, {at:g} a second"

        def progress_of(replicas: int, name: str = name, arrivals: Sequence[Arrival] = arrivals) -> "_Shown":
            return _Shown(bar, f"{name}, {replicas} replicas", len(arrivals))

        if plan.goal and not args.replicas and not plan.scaling:
            yield Row(rate=at, router=plan.router, figures=plan.least(arrivals, progress_of))
            continue
        for replicas in [plan.scaling.most] if plan.scaling else args.replicas or [1]:
            figures = plan.simulated(arrivals, replicas, progress_of(replicas))
            yield Row(rate=at, router=plan.router, figures=figures)


class _Shown:
    """A line of the progress bar for one run."""

    def __init__(self, bar: Progress, description: str, total: int) -> None:
        for task in bar.task_ids:
            bar.remove_task(task)
        self._bar, self._task = bar, bar.add_task(description, total=total)

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done)


def _arrivals(args: argparse.Namespace) -> Iterator[tuple[float | None, list[Arrival]]]:
    """The arrivals at each rate, or those of the trace."""
    if args.trace:
        yield None, read_trace(args.trace, args.trace_speed)
        return
    for at in args.rate:
        traffic = Traffic(
            rate=at,
            seconds=args.seconds,
            burstiness=args.burstiness,
            prompt=args.prompt_length,
            output=args.output_length,
            turns=args.turns,
            think_seconds=args.think_seconds,
            most_tokens=args.max_model_len,
            seed=args.seed,
        )
        yield at, traffic.arrivals()
