"""Shows rows: as a table on the terminal, as Markdown, as a picture."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from engine import ConfigError
from server.eval.calibration import Calibration
from server.eval.decisions import DecisionRow
from server.eval.policy import PolicyPair
from server.eval.score import Row, pooled

_DECISIONS = ["task", "n", "exact", "confidence", "Brier score", "expected calibration error"]


def table(rows: Sequence[Row], reference: str) -> Table:
    """A section for each task, and one over all tasks if there are several. `reference`: what answers agree with."""
    caption = f"exact: answers that are right, in per cent, with their 95 % interval; agree: same as {reference}"
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, caption=caption, caption_justify="left")
    for name in ("task", "cache", "unmask"):
        shown.add_column(name, no_wrap=name != "unmask")  # a guidance goes on a line of its own where there is no room
    for name in ("n", "exact", "95 %", "agree", "tok/\nfwd", "rows/\ntok", "s"):
        shown.add_column(name, justify="right", no_wrap=True)
    for _, section in groupby([*rows, *overall(rows)], key=lambda row: row.task):
        for row in section:
            low, high = row.interval
            shown.add_row(
                row.task,
                row.policy.cache_label,
                row.policy.label,
                str(row.n),
                _number(100 * row.accuracy, 1),
                f"{100 * low:.1f}-{100 * high:.1f}",
                _number(None if row.agreement is None else 100 * row.agreement, 1),
                *(_number(value, digits) for value, digits in _costs(row)),
            )
        shown.add_section()
    return shown


def markdown(rows: Sequence[Row]) -> str:
    """One line for each policy: the accuracy of each task and of all tasks."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    head = ["cache", "unmask", *tasks, "all", "95 %", "agreement", "tokens per forward", "rows per token", "seconds"]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for policy, members in _by_policy(rows).items():
        total, (low, high) = pooled(members), pooled(members).interval
        lines.append(
            [
                policy.cache_label,
                policy.label,
                *(_percent(row.accuracy) for row in members),
                _percent(total.accuracy),
                f"{_percent(low)} to {_percent(high)}",
                _percent(total.agreement),
                *(_number(value, digits) for value, digits in _costs(total)),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def calibration_table(found: Calibration) -> Table:
    """A line for each bin of probabilities."""
    caption = f"n {found.n}\nBrier score {found.brier:.4f}\nexpected calibration error {found.calibration_error:.4f}"
    shown = Table(box=SIMPLE_HEAD, show_edge=False, caption=caption, caption_justify="left")
    for name in ("probability of yes", "answered by yes", "n"):
        shown.add_column(name, justify="right")
    for one in found.bins:
        shown.add_row(f"{one.probability:.3f}", f"{one.share:.3f}", str(one.n))
    return shown


def calibration_markdown(found: Calibration) -> str:
    """One line for the model."""
    lines = [["n", "Brier score", "expected calibration error"], ["---:"] * 3]
    lines.append([str(found.n), f"{found.brier:.4f}", f"{found.calibration_error:.4f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def decisions_table(rows: Sequence[DecisionRow]) -> Table:
    """A line for each task."""
    caption = "exact: most probable answers that are right; confidence: their mean probability; both in per cent"
    shown = Table(box=SIMPLE_HEAD, show_edge=False, caption=caption, caption_justify="left")
    for name in _DECISIONS:
        shown.add_column(name, justify="left" if name == "task" else "right")
    for row in rows:
        shown.add_row(*_decision_cells(row))
    return shown


def decisions_markdown(rows: Sequence[DecisionRow]) -> str:
    """The same for documents."""
    lines = [_DECISIONS, ["---", *["---:"] * (len(_DECISIONS) - 1)], *map(_decision_cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _decision_cells(row: DecisionRow) -> list[str]:
    shares = (f"{100 * share:.1f}" for share in (row.accuracy, row.confidence))
    return [row.task, str(row.n), *shares, f"{row.brier:.4f}", f"{row.calibration_error:.4f}"]


def overall(rows: Sequence[Row]) -> list[Row]:
    """One row for each policy over all tasks; empty if there is only one task."""
    if len({row.task for row in rows}) < 2:
        return []
    return [pooled(members) for members in _by_policy(rows).values()]


def pyplot() -> Callable[[Sequence[Row], Path], None]:
    """The function that draws. Imports matplotlib; raises ConfigError if it is missing."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'unmask[plot]'") from None

    def draw(rows: Sequence[Row], path: Path) -> None:
        """Accuracy over all tasks against tokens per forward, a line for each cache with each unmask policy."""
        with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
            figure = Figure(figsize=(8, 5), layout="constrained")
            axes = figure.subplots()
            totals = [pooled(members) for members in _by_policy(rows).values()]
            caches = list(dict.fromkeys(row.policy.cache_label for row in totals))
            unmasks = list(dict.fromkeys(row.policy.unmask for row in totals))
            for cache in caches:
                for unmask in unmasks:
                    line = [row for row in totals if (row.policy.cache_label, row.policy.unmask) == (cache, unmask)]
                    points = sorted((row.tokens_per_forward, row.accuracy) for row in line if row.tokens_per_forward)
                    axes.plot(
                        [x for x, _ in points],
                        [y for _, y in points],
                        color=f"C{unmasks.index(unmask)}",
                        linestyle=("-", "--", ":", "-.")[caches.index(cache) % 4],
                        marker="os^Dv"[caches.index(cache) % 5],
                        label=f"{cache}, {unmask or 'default'}",
                    )
            axes.set(xlabel="tokens per forward", ylabel="exact answers")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize=9)
            try:
                figure.savefig(path, dpi=150)
            except (OSError, ValueError) as error:
                raise ConfigError(f"{path} cannot be written: {error}") from None

    return draw


def _by_policy(rows: Sequence[Row]) -> dict[PolicyPair, list[Row]]:
    policies: dict[PolicyPair, list[Row]] = {}
    for row in rows:
        policies.setdefault(row.policy, []).append(row)
    return policies


def _costs(row: Row) -> list[tuple[float | None, int]]:
    """Figures and their decimals, in the order of the columns."""
    return [(row.tokens_per_forward, 2), (row.rows_per_token, 1), (row.seconds, 1)]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"  # noqa: RUF001 - a dash for nothing


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001 - a dash for nothing
