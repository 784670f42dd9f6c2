"""Plots as PNG bytes, the same for the same numbers."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.use("Agg")
Series = Mapping[str, Sequence[tuple[int, float, float, float]]]  # name -> (step, mean, low, high)


def metric_plot(title: str, series: Series) -> bytes:
    """Mean over steps with its 95 % interval, one line a series."""
    figure = Figure(figsize=(6.4, 3.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, points in series.items():
        steps = [point[0] for point in points]
        (line,) = axes.plot(steps, [point[1] for point in points], marker="o", markersize=3, label=name)
        if len(series) == 1:
            axes.fill_between(steps, [p[2] for p in points], [p[3] for p in points], alpha=0.2, color=line.get_color())
    axes.set_xlabel("step (0 = base without a LoRA)")
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend(fontsize=7, ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
