"""The page of a benchmark: one self-contained HTML file with tables, plots and pictures side by side."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from unified_lift.bench.grid import Grid
from unified_lift.bench.results import TextTable, ran_on
from unified_lift.data import load_annotations
from unified_lift.data.settings import DataSettings
from unified_lift.evaluation.pictures import object_colors, partner_colors, read_picture
from unified_lift.evaluation.report import chosen_views, data_uri, write_html
from unified_lift.fileio import read_json

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
        tests = {names[line.method]: line._model / "test" / line._results for _, line in own.iterrows()}
        photos = next(iter(tests.values())) / "gt"
        views = [str(path.relative_to(photos).with_suffix("")) for path in photos.rglob("*.png")]
        chosen = chosen_views(sorted(views, key=lambda name: (len(name), name)), count=VIEWS_SHOWN)
        source = next(one.path for one in grid.scenes if one.name == scene)
        annotations = load_annotations(DataSettings(source_path=source), chosen) if chosen else {}
        for view in chosen:
            pictures = {"photo": read_picture(photos / f"{view}.png")}
            if view in annotations:
                pictures["ground truth"] = object_colors(annotations[view])
            for row, test in tests.items():
                ids, report = test / "objects_pred" / f"{view}.png", test.parents[1] / "evaluation.json"
                if ids.exists():
                    details = read_json(report).get(test.name, {}) if report.exists() else {}
                    pictures[row] = matched_colors(read_picture(ids), details)
            galleries[f"{scene}, masks {masks}, view {view}"] = pictures
    return galleries


def _plot_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return data_uri("png", buffer.getvalue())
