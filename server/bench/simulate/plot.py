"""Simulated fleets as a picture, drawn by matplotlib."""

from collections.abc import Callable, Sequence
from pathlib import Path

from engine import ConfigError
from server.bench.simulate.show import Simulated


def pyplot() -> Callable[[Sequence[Simulated], Path], None]:
    """The function that draws. Imports matplotlib; raises ConfigError if it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'unmask[plot]'") from None

    def draw(rows: Sequence[Simulated], path: Path) -> None:
        """By requests a second: seconds to the first block, median and 99th percentile, and how busy replicas are."""
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        figure.suptitle("simulated, not run", fontsize=10)
        waits, busy = figure.subplots(1, 2)
        fleets: dict[str, list[Simulated]] = {}
        for row in rows:
            fleets.setdefault(f"{row.figures.replicas} x replica, {row.router}", []).append(row)
        for i, (name, fleet) in enumerate(fleets.items()):
            at = [row.rate or row.figures.requests_per_second for row in fleet]
            answered = [(x, row.figures.first_block) for x, row in zip(at, fleet, strict=True)]
            first = [(x, block) for x, block in answered if block]
            waits.plot([x for x, _ in first], [block.p99 for _, block in first], f"C{i}o-", label=f"{name}: p99")
            waits.plot([x for x, _ in first], [block.p50 for _, block in first], f"C{i}o:", label="median")
            busy.plot(at, [100 * row.figures.utilisation for row in fleet], f"C{i}o-", label=name)
        waits.set(xlabel="requests a second", ylabel="seconds to the first block", yscale="log")
        busy.set(xlabel="requests a second", ylabel="percent of replicas' time in a step", ylim=(0, 105))
        for axes in (waits, busy):
            axes.spines[["top", "right"]].set_visible(False)
        waits.legend(frameon=False, fontsize=8)
        try:
            figure.savefig(path, dpi=140)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--plot {path}: {error}") from None

    return draw
