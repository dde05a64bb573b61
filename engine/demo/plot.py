"""Draws the learning curve that training left in `docs/`: `python -m engine.demo.plot` (needs matplotlib)."""

import csv
from pathlib import Path

from matplotlib import pyplot

from engine.demo.tasks import TASKS
from engine.demo.train import CURVE, THRESHOLD


def draw(curve: Path, picture: Path) -> None:
    """Exact accuracy per family over training steps."""
    with curve.open(newline="") as file:
        points = list(csv.DictReader(file))
    steps = [int(point["step"]) for point in points]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for task in TASKS:
        axes.plot(steps, [float(point[task]) for point in points], label=task)
    axes.set(xlabel="training steps", ylabel=f"exact answers, threshold {THRESHOLD}", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    draw(CURVE, CURVE.with_suffix(".png"))
