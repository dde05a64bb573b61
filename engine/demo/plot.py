"""Draws the learning curves that training left in `docs/`: `python -m engine.demo.plot` (needs matplotlib)."""

import csv
from pathlib import Path

from matplotlib import pyplot

from engine.demo.tasks import TASKS
from engine.demo.train import CURVES, THRESHOLD


def draw(curves: dict[str, Path], picture: Path) -> None:
    """Exact accuracy per family over training steps, a panel for each model."""
    figure, panels = pyplot.subplots(1, len(curves), figsize=(6 * len(curves), 5), sharey=True, layout="constrained")
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        with curve.open(newline="") as file:
            points = list(csv.DictReader(file))
        steps = [int(point["step"]) for point in points]
        for i, task in enumerate([*TASKS, "few_shot"]):
            accuracies = [float(point[task]) for point in points]
            axes.plot(steps, accuracies, label=task, linestyle="-" if i < 10 else "--", color=f"C{i % 10}")
        axes.set(title=name, xlabel="training steps", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel=f"exact answers, threshold {THRESHOLD}")
    panels[0].legend(fontsize=8, ncols=2)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    draw(CURVES, Path("docs/demo-training.png"))
