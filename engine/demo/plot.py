"""Draws the learning curves that training left in `docs/`: `python -m engine.demo.plot` (needs matplotlib)."""

import csv
from pathlib import Path

from matplotlib import pyplot

from engine.demo.tasks import TASKS
from engine.demo.train import CURVES, THRESHOLD


def draw(curves: dict[str, Path], picture: Path) -> None:
    """Exact accuracy per family, where it was examined, and loss over training steps: a panel for each model."""
    figure, panels = pyplot.subplots(1, len(curves), figsize=(6 * len(curves), 5), sharey=True, layout="constrained")
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        with curve.open(newline="") as file:
            points = list(csv.DictReader(file))
        for i, task in enumerate([*TASKS, "few_shot"]):
            examined = [(int(point["step"]), float(point[task])) for point in points if point[task]]
            style = {"linestyle": "-" if i < 10 else "--", "color": f"C{i % 10}", "marker": ".", "label": task}
            axes.plot(*zip(*examined, strict=True), **style)
        loss = [(int(point["step"]), float(point["loss"])) for point in points]
        axes.plot(*zip(*loss, strict=True), color="black", linewidth=0.8, label="loss")
        axes.set(title=name, xlabel="training steps", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel=f"exact answers, threshold {THRESHOLD}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=9)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    draw(CURVES, Path("docs/demo-training.png"))
