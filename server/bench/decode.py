"""`unmask bench decode`: what decoding costs, as a table, JSON or a picture. The engine does the measurement."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_args, get_type_hints

from rich.table import Table

from engine import METHODS, MODEL_SIZES, ConfigError, DecodeFigures, EngineConfig, Workload, bench_decode, find_model
from server.arguments import Parser
from server.console import output, progress_bar

_DTYPES = get_args(get_type_hints(EngineConfig)["dtype"])
_HELP = {
    "prompt": "tokens of the prompt",
    "gen": "tokens of the canvas",
    "block": "tokens of a block",
    "batch": "requests in flight",
    "tokens_per_step": "tokens each step decodes, but for the baseline's one",
    "repeats": "rounds in which every method has its turn",
    "sample_steps": "steps timed of a method without a cache, whose steps are all alike",
    "sample_blocks": "blocks timed of a single request with the dual cache, which are all alike; 0 is all of them",
}


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError or LoadError for errors that the user can fix."""
    given = _parse(argv)
    workload = Workload(**{field.name: getattr(given, field.name) for field in fields(Workload)})
    config = EngineConfig(
        model=given.model or given.size,
        device=given.device,
        dtype=given.dtype,
        num_threads=given.num_threads,
        compile=given.compile,
    )
    if given.plot:
        _check_plot(given.plot)
    if given.model:
        _check_model(given.model)
    figures = _run(config, workload, given.methods)
    if given.json:
        sys.stdout.write(json.dumps({"rows": [asdict(row) for row in figures]}, indent=2) + "\n")
    else:
        console = output(150)
        console.print(_table(figures, workload, config.model + (" (compiled)" if config.compile else "")))
    if given.plot:
        _plot(figures, given.plot)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="unmask bench", description="Measures on this machine.")
    commands = parser.add_subparsers(metavar="WHAT", required=True)
    decode = commands.add_parser(
        "decode",
        help="decoding one canvas or many: the papers' loops and this engine under each cache policy, in turns",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    model = decode.add_mutually_exclusive_group()
    model.add_argument("--size", choices=MODEL_SIZES, default="small", help="a model of random weights")
    model.add_argument("--model", help="a checkpoint folder or hub id in place of random weights")
    for field in fields(Workload):
        flag = "--" + field.name.replace("_", "-")
        decode.add_argument(flag, type=int, default=field.default, metavar="N", help=_HELP[field.name])
    decode.add_argument(
        "--methods",
        nargs="+",
        default=METHODS,
        metavar="METHOD",
        help="a choice of them; engine/dual+32 sees 32 positions behind the open block, engine/dual:int8 stores keys "
        "and values in int8",
    )
    decode.add_argument("--device", default="auto", help="a torch device")
    decode.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights"
    )
    decode.add_argument("--num-threads", type=int, metavar="N", help="CPU threads of torch")
    decode.add_argument(
        "--compile", action="store_true", help="compile the dense parts of the model, which all methods share"
    )
    decode.add_argument("--json", action="store_true", help="JSON on stdout instead of the table")
    decode.add_argument("--plot", type=Path, metavar="FILE", help="also draw tokens per second to this picture")
    return parser.parse_args(argv)


def _check_model(model: str) -> None:
    """Raises ConfigError for a model that the methods do not decode, LoadError if there is no such model."""
    spec = find_model(model).spec
    if spec.is_block_causal:
        raise ConfigError(
            f"{model} is block-causal ({spec.family}); bench decode measures models that attend in both directions"
        )


def _run(config: EngineConfig, workload: Workload, methods: Sequence[str]) -> list[DecodeFigures]:
    with progress_bar() as bar:
        task = bar.add_task(config.model, total=None)

        def progress(done: int, total: int, method: str) -> None:
            bar.update(task, completed=done, total=total, description=method)

        return bench_decode(config, workload, methods, progress)


def _table(figures: Sequence[DecodeFigures], workload: Workload, model: str) -> Table:
    table = Table(
        title=f"{model}: prompt {workload.prompt}, canvas {workload.gen}, blocks of {workload.block}, "
        f"{workload.tokens_per_step} tokens a step, batch {workload.batch}",
        caption="medians of interleaved rounds; ~ is scaled up from a sample; x is how many times as fast, x first as "
        "the first line; us/step: of the host, for a step of a request",
    )
    table.add_column("method", no_wrap=True, min_width=max(len(row.method) for row in figures))
    titles = ("rows", "forwards", "seconds", "tokens/s", "x baseline", "x reference dual", "x first", "first block")
    for title in (*titles, "KV pages", "memory", "host", "us/step"):
        table.add_column(title, justify="right")
    for row in figures:
        mark = "~" if row.sampled else ""
        table.add_row(
            row.method,
            f"{row.rows:,}",
            f"{row.forwards:,}",
            f"{mark}{row.seconds:.3g}",
            f"{mark}{row.tokens_per_second:.4g}",
            _optional(row.ratio_to_baseline, "{:.3g}"),
            _optional(row.ratio_to_reference_dual, "{:.3g}"),
            f"{row.ratio_to_first:.3g}",
            _optional(row.first_block_seconds, "{:.3g}"),
            _optional(row.kv_pages, "{:.4g}"),
            _optional(row.peak_memory_bytes and row.peak_memory_bytes / 2**20, "{:,.0f} MiB"),
            _optional(row.host_share, "{:.1%}"),
            _optional(row.host_us_per_step, "{:.0f}"),
        )
    return table


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _check_plot(path: Path) -> None:
    """Raises ConfigError if the picture cannot be drawn. Called before minutes of measurement."""
    try:
        import matplotlib  # noqa: F401 - optional, and slow to import
    except ImportError:
        raise ConfigError("--plot needs matplotlib: install unmask[plot]") from None
    if not path.parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no such folder")


def _plot(figures: Sequence[DecodeFigures], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(figures) + 1.2), layout="constrained")
    bars = axes.barh([row.method for row in figures], [row.tokens_per_second for row in figures])
    axes.bar_label(bars, [f"{row.tokens_per_second:.4g}" for row in figures], padding=3)
    axes.set(xscale="log", xlabel=f"tokens per second, batch {figures[0].batch}")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: {error}") from None
    finally:
        pyplot.close(figure)
