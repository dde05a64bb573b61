"""The figures as a table on the terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from server.bench.serve.figures import Quantiles, ServeFigures

_TIMES = {
    "time_to_first_block": "time to first block",
    "time_per_output_token": "time per output token",
    "inter_block_latency": "inter-block latency",
    "end_to_end": "end to end",
}


def table(figures: ServeFigures, title: str) -> Group:
    times = Table("milliseconds", box=SIMPLE_HEAD, show_edge=False)
    for name in ("mean", "p50", "p90", "p99"):
        times.add_column(name, justify="right")
    for name, words in _TIMES.items():
        times.add_row(words, *_milliseconds(getattr(figures, name)))
    counts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    counts.add_row("requests", f"{figures.completed} answered, {figures.failed} failed, in {figures.seconds:.2f} s"
                   + (" (interrupted)" if figures.interrupted else ""))  # fmt: skip
    counts.add_row("requests/s", f"{figures.requests_per_second:.2f}")
    counted = "" if figures.tokens_from == "usage" else " (chunks counted: the server sends no usage)"
    counts.add_row("visible tokens/s", f"{figures.tokens_per_second:.1f}{counted}")
    tokens = f"{figures.completion_tokens:,} generated"
    if figures.prompt_tokens is not None:
        tokens = f"{figures.prompt_tokens:,} of prompts, {tokens}"
    counts.add_row("tokens", tokens)
    counts.add_row("blocks per answer", _number(figures.blocks_per_request))
    counts.add_row("forwards per token", _number(figures.forwards_per_token))
    counts.add_row("rows per token", _number(figures.rows_per_token))
    for reason, number in figures.failures.items():
        counts.add_row("failed", f"{number} x {reason}")
    return Group(title, "", times, "", counts)


def _milliseconds(quantiles: Quantiles | None) -> tuple[str, ...]:
    if quantiles is None:
        return ("-",) * 4
    return tuple(f"{1000 * getattr(quantiles, name):.1f}" for name in ("mean", "p50", "p90", "p99"))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
