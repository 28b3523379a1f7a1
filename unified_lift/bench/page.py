"""The page of a benchmark: one self-contained HTML file with tables, plots and pictures side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from unified_lift.bench.grid import Grid
from unified_lift.bench.results import TextTable, ran_on
from unified_lift.data import load_annotations
from unified_lift.data.settings import DataSettings
from unified_lift.evaluation.pictures import object_colors, partner_colors, read_picture
from unified_lift.evaluation.report import chosen_views, data_uri, write_html
from unified_lift.fileio import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VIEWS_SHOWN = 2
_DPI = 130


def write_page(
    path: Path, grid: Grid, frame: pd.DataFrame, tables: Sequence[TextTable], figures: Mapping[str, Figure]
) -> None:
    """Write the page; it loads nothing from anywhere."""
    subtitle = f"{len(grid.scenes)} scenes, {len(grid.rows)} methods, {len(grid.seeds)} seeds; "
    subtitle += f"{(frame.state == 'done').sum()} of {len(frame)} results are there"
    subtitle += f"; {grid.iterations:,} geometry iterations" if grid.iterations else ""
    write_html(
        path,
        Path(__file__).with_name("page.html"),
        grid=grid,
        subtitle=subtitle,
        tables=tables,
        plots={caption: _plot_uri(figure) for caption, figure in figures.items()},
        galleries=_galleries(grid, frame),
        ran_on=ran_on(frame),
    )


def matched_colors(ids: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    """Return predicted ids in the colours of the true objects they are matched with, uint8 [H, W, 3].

    So an object has one colour in the ground truth and under every method; one without partner is light grey.

    Args:
        ids: Predicted ids, [H, W].
        details: Report of the protocol; without a matching every id has a colour of its own.
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
    done = frame[(frame.state == "done") & frame.method.isin(names)].drop_duplicates(["masks", "scene", "method"])
    for (masks, scene), own in done.groupby(["masks", "scene"], sort=False):
        models = {names[line.method]: (line._model, line._results) for _, line in own.iterrows()}
        folder = next(one.path for one in grid.scenes if one.name == scene)
        for view, pictures in _views(folder, models).items():
            galleries[f"{scene}, masks {masks}, view {view}"] = pictures
    return galleries


def _views(scene: Path, models: Mapping[str, tuple[Path, str]]) -> dict[str, dict[str, np.ndarray]]:
    """Return view -> caption -> picture; `models`: name -> folder and name of the results."""
    first, results = next(iter(models.values()))
    photos = first / "test" / results / "gt"
    names = sorted((str(path.relative_to(photos).with_suffix("")) for path in photos.rglob("*.png")), key=_by_length)
    chosen = chosen_views(names, count=VIEWS_SHOWN)
    annotations = load_annotations(DataSettings(source_path=scene), chosen) if chosen else {}
    views = {}
    for name in chosen:
        views[name] = {"photo": read_picture(photos / f"{name}.png")}
        if name in annotations:
            views[name]["ground truth"] = object_colors(annotations[name])
        for row, (model, results) in models.items():
            path, report = model / "test" / results / "objects_pred" / f"{name}.png", model / "evaluation.json"
            if path.exists():
                details = read_json(report).get(results, {}) if report.exists() else {}
                views[name][row] = matched_colors(read_picture(path), details)
    return views


def _by_length(name: str) -> tuple[int, str]:
    return len(name), name


def _plot_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return data_uri("png", buffer.getvalue())
