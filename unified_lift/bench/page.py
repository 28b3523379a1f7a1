"""The page of a benchmark: one self-contained HTML file with tables, plots and pictures side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from unified_lift.bench.grid import Grid
from unified_lift.bench.results import TextTable, of_masks, ran_on
from unified_lift.data import load_annotations
from unified_lift.data.settings import DataSettings
from unified_lift.evaluation.pictures import object_colors, partner_colors, read_picture
from unified_lift.evaluation.report import chosen_views, data_uri, inline_picture, write_html
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


def _galleries(grid: Grid, frame: pd.DataFrame) -> dict[str, list[tuple[str, str]]]:
    """Return title -> captioned pictures: of each scene some views, from the first seed that has some."""
    galleries: dict[str, list[tuple[str, str]]] = {}
    names, shared = ({row.key: row.name for row in grid.rows}, {row.key for row in grid.rows if row.model})
    for masks in grid.table.masks:
        done = of_masks(frame, masks)
        done = done[(done.state == "done") & ~done.method.isin(shared)].drop_duplicates(["scene", "method"])
        for scene in grid.scenes:
            models = {names[p.method]: (p._model, p._results) for _, p in done[done.scene == scene.name].iterrows()}
            for view, pictures in _views(scene.path, models).items():
                galleries[f"{scene.name}, masks {masks.folder}, view {view}"] = pictures
    return galleries


def _views(scene: Path, models: Mapping[str, tuple[Path, str]]) -> dict[str, list[tuple[str, str]]]:
    folders = {name: model / "test" / results for name, (model, results) in models.items()}
    photos = next(iter(folders.values()), Path()) / "gt"
    names = [str(path.relative_to(photos).with_suffix("")) for path in photos.rglob("*.png")] if folders else []
    chosen = chosen_views(sorted(names, key=lambda name: (len(name), name)), count=VIEWS_SHOWN)
    truth = load_annotations(DataSettings(source_path=scene), chosen) if chosen else {}
    views = {}
    for name in chosen:
        views[name] = [("photo", inline_picture(read_picture(photos / f"{name}.png"), photo=True))]
        if name in truth:
            views[name].append(("ground truth", inline_picture(object_colors(truth[name]), photo=False)))
        for row, folder in folders.items():
            path = folder / "objects_pred" / f"{name}.png"
            if path.exists():
                model, results = models[row]
                report = model / "evaluation.json"
                details = read_json(report).get(results, {}) if report.exists() else {}
                views[name].append((row, inline_picture(matched_colors(read_picture(path), details), photo=False)))
    return views


def _plot_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return data_uri("png", buffer.getvalue())
