"""Figures of a benchmark: scores of the rows, scene by scene, against time, and over cluster sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from unified_lift.bench.collect import Results
from unified_lift.bench.tables import MaskSet
from unified_lift.evaluation.plots import styled, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OURS, _PAPER, _OTHERS = "#b4533c", "#2f6f9f", "#8fb3cc"
_HIGHLIGHT = "unified_lift"
_ROW_INCHES, _PANEL_INCHES = 0.26, 3.6
_MARKERS = "osDv^<>PX*hpd"


def all_figures(results: Results) -> dict[str, Figure]:
    """Return caption -> figure; one without data is left out."""
    figures: dict[str, Figure | None] = {}
    for masks in results.plan.table.masks:
        figures |= {
            f"Mean over the scenes, masks {masks.folder}": score_figure((results, masks)),
            f"Scene by scene, masks {masks.folder}": scene_figure((results, masks)),
            f"Quality against time, masks {masks.folder}": time_figure((results, masks)),
            f"HDBSCAN: score over the smallest cluster, masks {masks.folder}": sweep_figure((results, masks)),
        }
    return {caption: figure for caption, figure in figures.items() if figure is not None}


@styled
def score_figure(data: tuple[Results, MaskSet]) -> Figure | None:
    """Return a panel for every metric: a bar for each row with the spread over seeds, a diamond for the paper."""
    results, masks = data
    rows = results.plan.rows
    statistics = {m: [results.over_scenes(masks, row, m) for row in rows] for m in masks.metrics}
    shown = [m for m in masks.metrics if any(s.mean is not None for s in statistics[m])]
    if not shown:
        return None
    height = _ROW_INCHES * len(rows) + 0.7
    figure, axes = subplots(1, len(shown), width=1.6 + _PANEL_INCHES * len(shown), height=height)
    for axis, metric in zip(axes, shown):
        for place, (row, statistic) in enumerate(zip(rows, statistics[metric])):
            color = _OURS if row.key == _HIGHLIGHT else _OTHERS
            if statistic.mean is not None:
                spread = None if statistic.spread is None else 100 * statistic.spread
                axis.barh(place, 100 * statistic.mean, xerr=spread, color=color, height=0.7, error_kw={"lw": 1})
            published = results.published(row)
            if published is not None and metric in published.mean:
                axis.plot(100 * published.mean[metric], place, "D", color=_PAPER, markersize=4, zorder=3)
        names = [row.name for row in rows] if axis is axes[0] else []
        axis.set_yticks(range(len(rows)), names or [""] * len(rows))
        axis.invert_yaxis()
        axis.set_xlim(0, 100)
        axis.set_title(f"{metric} [%]", loc="left")
        axis.grid(axis="x")
    return figure


@styled
def scene_figure(data: tuple[Results, MaskSet]) -> Figure | None:
    """Return a panel for every metric with a mark for each row on each scene; None with less than two scenes."""
    results, masks = data
    scenes = results.scenes_of(masks)
    if len(scenes) < 2 or not _any_score(results, masks):
        return None
    shown = masks.metrics
    width = 2.2 + max(_PANEL_INCHES, 0.55 * len(scenes) + 1) * len(shown)
    figure, axes = subplots(1, len(shown), width=width, height=3.0)
    for axis, metric in zip(axes, shown):
        for index, row in enumerate(results.plan.rows):
            found = [(at, results.over_seeds(masks, row, scene, metric)) for at, scene in enumerate(scenes)]
            points = [(at, 100 * s.mean, 100 * (s.spread or 0)) for at, s in found if s.mean is not None]
            if points:
                at, means, spreads = zip(*points)
                style = {"color": _OURS, "zorder": 3} if row.key == _HIGHLIGHT else {"color": f"C{index}"}
                mark = _MARKERS[index % len(_MARKERS)]
                axis.errorbar(at, means, yerr=spreads, fmt=f"{mark}-", ms=4, lw=1, label=row.name, **style)
        axis.set_xticks(range(len(scenes)), scenes, rotation=20, ha="right")
        axis.set_ylim(0, 100)
        axis.set_title(f"{metric} [%]", loc="left")
    axes[-1].legend(frameon=False, fontsize=6.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def time_figure(data: tuple[Results, MaskSet]) -> Figure | None:
    """Return the main metric of every row against its mean time for the lift, on a logarithmic axis."""
    results, masks = data
    metric = masks.metrics[0]
    points = []
    for index, row in enumerate(results.plan.rows):
        score, time = results.over_scenes(masks, row, metric), results.seconds(masks, row, "lift")
        if score.mean is not None and time.mean:
            points.append((index, row, time.mean, 100 * score.mean))
    if not points:
        return None
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (axis,) = subplots(1, 1, width=6.5, height=3.2)
    for index, row, seconds, percent in points:
        color = _OURS if row.key == _HIGHLIGHT else f"C{index}"
        axis.plot(seconds, percent, _MARKERS[index % len(_MARKERS)], color=color, ms=6, label=row.name)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("lift, seconds")
    axis.set_title(f"{metric} [%]", loc="left")
    axis.legend(frameon=False, fontsize=6.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def sweep_figure(data: tuple[Results, MaskSet]) -> Figure | None:
    """Return the main metric over the candidates of an oracle reading, a line for each scene (its first seed)."""
    results, masks = data
    metric = masks.metrics[0]
    curves: dict[str, list[tuple[float, float]]] = {}
    for place in results.measured:
        if place.masks == masks.folder and place.candidates and place.scene not in curves:
            curves[place.scene] = _curve(place.candidates, metric)
    curves = {scene: curve for scene, curve in curves.items() if len(curve) > 1}
    if not curves:
        return None
    figure, (axis,) = subplots(1, 1, width=6.5, height=3.0)
    for scene, curve in curves.items():
        axis.plot(*zip(*curve), "o-", ms=3, lw=1, label=scene)
    axis.set_xlabel("smallest cluster")
    axis.set_title(f"{metric} [%], one codebook for each cluster size", loc="left")
    axis.legend(frameon=False)
    return figure


def _curve(candidates: Mapping[str, Mapping[str, float]], metric: str) -> list[tuple[float, float]]:
    """Return (number in the candidate's name, percent), rising; candidates without a number or score are left out."""
    points = []
    for name, scores in candidates.items():
        number = re.search(r"\d+(?:\.\d+)?", name)
        if number and metric in scores:
            points.append((float(number.group()), 100 * scores[metric]))
    return sorted(points)


def _any_score(results: Results, masks: MaskSet) -> bool:
    return any(
        place.masks == masks.folder and any(metric in place.scores for metric in masks.metrics)
        for place in results.measured
    )
