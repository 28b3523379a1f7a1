"""Figures of a run: its losses over the steps, and its scores view by view."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unified_lift.evaluation.protocols import metric_of
from unified_lift.fileio import replacing
from unified_lift.reading import as_text

styled = mpl.rc_context(fname=Path(__file__).with_name("plots.mplstyle"))
"""Decorates what draws: our style, which is undone afterwards."""
_NOT_TERMS = ("stage", "step", "total", "seconds_per_step")
_STATISTICS = {
    "num_gaussians": "number of Gaussians",
    "objects_used": "objects in use",
    "filtered_ratio": "share of filtered pixels",
}
_TITLES = _STATISTICS | {
    "photometric": "photometric loss",
    "contrastive": "contrastive loss (Eq. 1)",
    "class": "class loss (Eq. 4)",
    "concentration": "concentration loss (Eq. 6)",
    "norm": "feature norm loss",
    "psnr": "held-out PSNR [dB]",
}
_COLORS = {"geometry": "#2f6f9f", "lift": "#b4533c", "test": "#4b8b4f"}
_OTHER_COLOR = "#5b5b8c"
_COLUMNS, _PANEL_INCHES = 3, (3.3, 2.1)
_LOG_RANGE = 20  # a loss that spans a larger factor is drawn on a logarithmic axis
_MAX_LABELLED_BARS = 40


def write_plots(
    folder: Path, *, per_view: Mapping[str, Mapping[str, float]], log_lines: Sequence[Mapping[str, Any]]
) -> dict[str, Path]:
    """Write losses.png and metrics.png, see below, and return caption -> file; a plot without data is left out."""
    figures = {"Training": ("losses.png", loss_figure(log_lines)), "Scores": ("metrics.png", metric_figure(per_view))}
    written = {}
    for caption, (name, figure) in figures.items():
        if figure is not None:
            written[caption] = folder / name
            with replacing(written[caption], sync=False) as partial:
                figure.savefig(partial, format="png", dpi=130)
    return written


@styled
def loss_figure(log_lines: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Return one panel for every term and statistic of every stage, None where nothing was logged.

    Lines are {stage, step, name: value, ...}; a resumed run repeats steps, and the last line of each counts.
    """
    points: dict[tuple[str, str], dict[int, float]] = {}
    for line in log_lines:
        for name, value in line.items():  # the Gaussians count once, in geometry
            if name not in _NOT_TERMS and (name != "num_gaussians" or line["stage"] == "geometry"):
                points.setdefault((line["stage"], name), {})[int(line["step"])] = float(value)
    if not points:
        return None
    rows, columns = -(-len(points) // _COLUMNS), min(_COLUMNS, len(points))
    figure, axes = subplots(rows, columns, width=columns * _PANEL_INCHES[0], height=_PANEL_INCHES[1])
    for axis in axes[len(points) :]:
        axis.set_visible(False)
    for axis, ((stage, name), curve) in zip(axes, points.items()):
        steps, values = np.array(sorted(curve.items())).T
        is_loss = stage != "test" and name not in _STATISTICS
        color, marker = _COLORS.get(stage, _OTHER_COLOR), "o" if len(steps) < 12 else ""
        shown, window = values, len(values) // 15
        if is_loss and window > 1:
            axis.plot(steps, values, color=color, linewidth=0.8, alpha=0.35)
            kernel = np.hanning(2 * window + 3)[1:-1]
            mass = np.convolve(np.ones(len(values)), kernel, "same")  # so that the ends are means of fewer points
            shown = np.convolve(values, kernel, "same") / mass
        axis.plot(steps, shown, color=color, linewidth=1.6, marker=marker, markersize=3)
        axis.set_title(_TITLES.get(name, name), loc="left")
        axis.set_xlabel(f"{'geometry' if stage == 'test' else stage} step")
        if name in _STATISTICS:
            axis.set_ylim(0, 1.1 * values.max() or 1)
        elif is_loss and 0 < _LOG_RANGE * values.min() < values.max():
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
    return figure


@styled
def metric_figure(per_view: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """Return bars of every score (metric -> view -> value) with its mean, None where there is no score."""
    metrics = [m for m in map(metric_of, per_view) if m.higher_is_better is not None and per_view[m.name]]
    if not metrics:
        return None
    names = list(dict.fromkeys(name for metric in metrics for name in per_view[metric.name]))
    figure, axes = subplots(len(metrics), 1, width=_COLUMNS * _PANEL_INCHES[0], height=1.5)
    for axis, metric in zip(axes, metrics):
        values = per_view[metric.name]
        heights = np.array(list(values.values()))
        color = "#d6a08f" if metric.function is None else "#8fb3cc"
        axis.bar([names.index(name) for name in values], heights, color=color, width=0.75)
        axis.axhline(heights.mean(), color="#444444", linewidth=1, linestyle=(0, (4, 3)))
        axis.set_title(f"{metric.title}, mean {heights.mean():.4g}", loc="left")
        if metric.limit is not None:
            axis.set_ylim(0, metric.limit)
        axis.set_xticks(np.arange(len(names)), [])
        axis.set_xlim(-0.6, len(names) - 0.4)
    if len(names) <= _MAX_LABELLED_BARS:
        labels = [as_text(name) for name in names]
        axes[-1].set_xticks(np.arange(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
    return figure


def subplots(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of `width` inches whose rows are `height` inches high."""
    figure = Figure(figsize=(width, rows * height), layout="constrained")  # no pyplot: no window, no global list
    return figure, [figure.add_subplot(rows, columns, 1 + index) for index in range(rows * columns)]
