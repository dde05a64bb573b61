"""Predictions as a picture, drawn by matplotlib."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engine import ConfigError, Prediction


def pyplot() -> Callable[[Mapping[str, Sequence[Prediction]], Path], None]:
    """The function that draws. Imports matplotlib; raises ConfigError if it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'unmask[plot]'") from None

    def draw(panels: Mapping[str, Sequence[Prediction]], path: Path) -> None:
        """A panel for each device, a group of bars for each policy, a bar for each batch."""
        figure = Figure(figsize=(5 * len(panels), 4.2), layout="constrained")
        figure.suptitle("predicted, not run on a GPU; bfloat16, CUDA graphs", fontsize=10)
        for axes, (name, predictions) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
        ):
            methods = list(dict.fromkeys(prediction.method for prediction in predictions))
            labels = [method.removeprefix("engine/").replace("/", "\n") for method in methods]
            batches = list(dict.fromkeys(prediction.batch for prediction in predictions))
            for i, batch in enumerate(batches):
                heights = [prediction.tokens_per_second for prediction in predictions if prediction.batch == batch]
                places = [place + 0.8 * (i - (len(batches) - 1) / 2) / len(batches) for place in range(len(methods))]
                bars = axes.bar(places, heights, 0.8 / len(batches), label=f"batch {batch}")
                axes.bar_label(bars, [f"{height:,.0f}" for height in heights], fontsize=7, padding=2, rotation=90)
            axes.set(
                title=name,
                yscale="log",
                ylabel="tokens a second at most" if axes.get_subplotspec().is_first_col() else "",
            )
            axes.set_xticks(range(len(methods)), labels, fontsize=8)
            axes.margins(y=0.12)
            axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        try:
            figure.savefig(path, dpi=140)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--plot {path}: {error}") from None

    return draw
