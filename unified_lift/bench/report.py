"""The files of a benchmark: tables, figures, and one self-contained page with pictures side by side."""

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from unified_lift.bench.grid import Grid
from unified_lift.bench.records import Record
from unified_lift.bench.results import HIDDEN, all_tables, latex, markdown, measure, of_masks, score, summary
from unified_lift.bench.tables import BASE, KINDS, PRESETS, ROBUSTNESS, ROWS, VIEWS, MaskSet, Row
from unified_lift.data import load_annotations
from unified_lift.data.settings import DataSettings
from unified_lift.evaluation.pictures import object_colors, partner_colors, read_ids, read_picture
from unified_lift.evaluation.plots import styled, subplots
from unified_lift.evaluation.protocols import metric_of
from unified_lift.evaluation.report import chosen_views, data_uri, write_html
from unified_lift.fileio import read_json, write_json, write_text
from unified_lift.provenance import near, told_command, told_tree
from unified_lift.reading import reading

VIEWS_SHOWN = 2
_OURS, _PAPER, _OTHERS = "#b4533c", "#2f6f9f", "#8fb3cc"
_HIGHLIGHT = ROWS["unified_lift"].name
_TIMED_SCORES = ("PQ_scene", "mIoU", "PSNR")
_MARKERS = "osDv^<>PX*hpd"
_PANEL_INCHES, _ROW_INCHES = (3.6, 2.8), 0.26
Curves = Mapping[str, list[tuple[float, float, float]]]
"""Label -> points, each x, mean and standard deviation."""


def write_report(grid: Grid, records: Mapping[str, Record]) -> str:
    """Write results, tables, figures and page into the folder of the grid, and return the tables as Markdown."""
    frame = measure(grid, records)
    frame["message"] = frame.message.map(lambda text: told_tree(text, grid.out, grid.provenance))
    grid = replace(grid, extra=tuple(told_command(grid.extra, near(grid.out), grid.provenance)))
    tables, figures = all_tables(grid, frame), all_figures(grid, frame)
    text = markdown(tables)
    write_text(grid.out / "results.csv", frame.drop(columns=HIDDEN).to_csv(index=False))
    write_text(grid.out / "table.md", text)
    write_text(grid.out / "table.tex", latex(tables))
    means = summary(grid, frame)
    write_json(grid.out / "summary.json", means)
    plots = {}
    for caption, figure in figures.items():
        figure.savefig(content := io.BytesIO(), format="png", dpi=130)
        plots[caption] = data_uri("png", content.getvalue())
        if grid.table.key in (ROBUSTNESS, PRESETS):
            figure.savefig(grid.out / f"{'timeline' if grid.timeline else grid.table.key}.png", dpi=150)
    subtitle = f"{len(grid.scenes)} scenes, {len(grid.rows)} methods, {len(grid.seeds)} seeds; "
    subtitle += f"{(frame.state == 'done').sum()} of {len(frame)} results are there"
    subtitle += f"; {grid.iterations:,} geometry iterations" if grid.iterations else ""
    facts = {"grid": grid, "subtitle": subtitle, "tables": tables, "plots": plots, "ran_on": means["ran_on"]}
    template = Path(__file__).with_name("report.html")
    write_html(grid.out / "report.html", template, galleries=_galleries(grid, frame), **facts)
    return text


def matched_colors(ids: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    """Return predicted ids [H, W] in the colours of the true objects they are matched with, uint8 [H, W, 3].

    `details`: report of the protocol. An object has one colour in the ground truth and under every method; one without
    partner is light grey. Without a matching every id has a colour of its own.
    """
    if "objects" not in details:
        return object_colors(ids)
    partners = {entry["pred_id"]: entry["true_id"] for entry in details["objects"] if entry["pred_id"] is not None}
    if "background_id" in details:
        partners[details["background_id"]] = 0
    return partner_colors(ids, partners)


def _galleries(grid: Grid, frame: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """Return title -> caption -> picture: some views of each scene, from the first seed that has some."""
    galleries = {}
    names = {row.key: row.name for row in grid.rows if not row.model}
    sources = {scene.name: DataSettings(source_path=scene.path) for scene in grid.scenes}
    done = frame[(frame.state == "done") & frame.method.isin(names)].drop_duplicates(["masks", "scene", "method"])
    for (masks, scene), own in done.groupby(["masks", "scene"], sort=False):
        tests = {names[line.method]: line._model / "test" / line._results for _, line in own.iterrows()}
        photos = next(iter(tests.values())) / "gt"
        views = [str(path.relative_to(photos).with_suffix("")) for path in photos.rglob("*.png")]
        chosen = chosen_views(sorted(views, key=lambda name: (len(name), name)), count=VIEWS_SHOWN)
        annotations = load_annotations(sources[scene], chosen) if chosen else {}
        for view in chosen:
            pictures = {"photo": read_picture(photos / f"{view}.png")}
            if view in annotations:
                pictures["ground truth"] = object_colors(annotations[view])
            for row, test in tests.items():
                ids, report = test / "objects_pred" / f"{view}.png", test.parents[1] / "evaluation.json"
                if ids.exists():
                    details, shown = {}, read_ids(ids)
                    if report.exists():
                        details = read_json(report).get(test.name, {})
                    with reading(report if details else ids, "report", fix="write it again with eval.py"):
                        pictures[row] = matched_colors(shown, details)
            galleries[f"{scene}, masks {masks}, view {view}"] = pictures
    return galleries


@styled
def all_figures(grid: Grid, frame: pd.DataFrame) -> dict[str, Figure]:
    """Return caption -> figure; one without data is left out."""
    figures: dict[str, Figure | None] = {}
    for masks in grid.table.masks:
        part, metric = of_masks(frame, masks), masks.metrics[0]
        if grid.table.key == ROBUSTNESS:
            figures["Score against noise"] = _robustness_figure(grid, part, metric)
        elif grid.table.key != PRESETS:
            of = f", masks {masks.label}"
            figures[f"Mean over the scenes{of}"] = _mean_figure(grid, part, masks)
            figures[f"Scene by scene{of}"] = _scene_figure(grid, part, masks)
            figures[f"Quality against time{of}"] = _lift_time_figure(grid, part, metric)
            figures[f"HDBSCAN: score over the smallest cluster{of}"] = _cluster_figure(part, metric)
        elif grid.timeline:
            figures["Quality against training time"] = _timeline_figure(part)
    return {caption: figure for caption, figure in figures.items() if figure is not None}


def _percent(part: pd.DataFrame, row: Row, metric: str) -> tuple[float, float]:
    """Return mean and standard deviation of a row; NaN where there is no mean."""
    found = score(part[part.method == row.key], metric)
    return 100 * (np.nan if found.mean is None else found.mean), 100 * (found.std or 0)


def _mean_figure(grid: Grid, part: pd.DataFrame, masks: MaskSet) -> Figure | None:
    """Return a panel for every metric: a bar for each row with its standard deviation, a diamond for the paper."""
    names = [row.name for row in grid.rows]
    scores = {metric: np.transpose([_percent(part, row, metric) for row in grid.rows]) for metric in masks.metrics}
    scores = {metric: found for metric, found in scores.items() if np.isfinite(found[0]).any()}
    if not scores:
        return None
    width = 1.6 + _PANEL_INCHES[0] * len(scores)
    figure, axes = subplots(1, len(scores), width=width, height=_ROW_INCHES * len(names) + 0.7)
    colors = [_OURS if name == _HIGHLIGHT else _OTHERS for name in names]
    for axis, (metric, (means, stds)) in zip(axes, scores.items()):
        axis.barh(range(len(names)), means, xerr=stds, color=colors, height=0.7, error_kw={"lw": 1})
        for place, row in enumerate(grid.rows):
            if metric in (paper := grid.table.published(row).mean):
                axis.plot(100 * paper[metric], place, "D", color=_PAPER, markersize=4, zorder=3)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names))
        axis.invert_yaxis()
        axis.set_xlim(0, 100)
        axis.set_title(f"{metric} [%]", loc="left")
        axis.grid(axis="x")
    return figure


def _line_figure(panels: Mapping[str, Curves], *, xlabel: str = "", log_x: bool = False) -> Figure | None:
    """Return a panel for each title, bands of one standard deviation, and one legend; None where there is no point."""
    labels = list(dict.fromkeys(label for curves in panels.values() for label, points in curves.items() if points))
    if not labels:
        return None
    columns = min(3, len(panels))
    width = _PANEL_INCHES[0] * columns + 2
    figure, axes = subplots(-(-len(panels) // columns), columns, width=width, height=_PANEL_INCHES[1])
    for axis, (title, curves) in zip(axes, panels.items()):
        for index, label in enumerate(labels):
            x, mean, std = np.reshape(curves.get(label, []), (-1, 3)).T
            style: dict[str, Any] = {"color": f"C{index}", "lw": 1.2}
            style |= {"color": _OURS, "lw": 2.4, "zorder": 4} if label == _HIGHLIGHT else {}
            axis.plot(x, mean, marker=_MARKERS[index % len(_MARKERS)], ms=4, label=label, **style)
            axis.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.15, lw=0)
        axis.set_title(title, loc="left")
        axis.set_xlabel(xlabel)
        if log_x:
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("{x:.2g}")
            axis.tick_params(axis="x", which="both", labelrotation=20)
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.legend(handles=axes[0].lines, loc="outside right upper", frameon=False, fontsize=6.5)
    return figure


def _curves(grid: Grid, part: pd.DataFrame, metric: str, x: Mapping[str, float]) -> Curves:
    """Return the curve of every row; `x`: scene -> its place on the axis."""
    points = {
        row.name: [(place, *_percent(part[part.scene == scene], row, metric)) for scene, place in x.items()]
        for row in grid.rows
    }
    return {name: [point for point in own if np.isfinite(point[1])] for name, own in points.items()}


def _scene_figure(grid: Grid, part: pd.DataFrame, masks: MaskSet) -> Figure | None:
    """Return a panel for every metric, scenes from left to right; None with less than two scenes."""
    x = {scene: index for index, scene in enumerate(part.scene.unique())}
    panels = {f"{metric} [%]": _curves(grid, part, metric, x) for metric in masks.metrics}
    figure = _line_figure(panels) if len(x) > 1 else None
    for axis in figure.axes if figure else ():
        axis.set_xticks(list(x.values()), list(x), rotation=20, ha="right")
        axis.set_ylim(0, 100)
    return figure


def _lift_time_figure(grid: Grid, part: pd.DataFrame, metric: str) -> Figure | None:
    """Return the main metric of every row against its mean time for the lift, on a logarithmic axis."""
    seconds = part.lift_s.astype(float).groupby(part.method).mean()
    points = {row.name: (seconds.get(row.key, 0), _percent(part, row, metric)[0], 0.0) for row in grid.rows}
    known = {name: [point] for name, point in points.items() if point[0] > 0 and np.isfinite(point[1])}
    return _line_figure({f"{metric} [%]": known}, xlabel="lift, seconds", log_x=True)


def _cluster_figure(part: pd.DataFrame, metric: str) -> Figure | None:
    """Return the main metric over the candidates of an oracle row, a line for each scene (its first seed)."""
    curves = {}
    for _, place in part.dropna(subset="_candidates").drop_duplicates("scene").iterrows():
        known = [(re.search(r"\d+(?:\.\d+)?", name), scores) for name, scores in place._candidates.items()]
        points = [
            (float(size[0]), 100 * value, 0.0) for size, own in known if size and (value := own.get(metric)) is not None
        ]
        if len(points) > 1:
            curves[place.scene] = sorted(points)
    title = f"{metric} [%], one codebook for each cluster size"
    return _line_figure({title: curves}, xlabel="smallest cluster")


def _robustness_figure(grid: Grid, part: pd.DataFrame, metric: str) -> Figure | None:
    """Return a panel for each kind of noise, the harder to the right; a dotted line marks the generator's default."""
    kinds = {str(kind): dict(zip(own.scene, own.amount)) for kind, own in part.groupby("kind", sort=False)}
    figure = _line_figure({KINDS[kind][0]: _curves(grid, part, metric, x) for kind, x in kinds.items()})
    for kind, axis in zip(kinds, figure.axes if figure else ()):
        axis.set_ylabel(f"{metric} [%]")
        axis.set_ylim(0, 100)
        if kind == VIEWS:
            axis.invert_xaxis()
        else:
            axis.axvline(getattr(BASE, kind), color="grey", linestyle=":", linewidth=1, zorder=1)
    return figure


def _timeline_figure(part: pd.DataFrame) -> Figure | None:
    """Return a panel for each score with a line for every preset against its training time, on a logarithmic axis."""
    done = part[part.state == "done"].assign(seconds=lambda own: own.geometry_s + own.lift_s, std=0.0)
    panels = {
        f"held-out {metric_of(name).title}": {
            str(preset): list(own[["seconds", name, "std"]].itertuples(index=False, name=None))
            for preset, own in done.groupby("method", sort=False)
        }
        for name in _TIMED_SCORES
        if name in done
    }
    return _line_figure(panels, xlabel="training time, s", log_x=True)
