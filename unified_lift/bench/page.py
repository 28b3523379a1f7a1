"""The page of a benchmark: one self-contained HTML file with tables, plots and pictures side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unified_lift.bench.collect import RESULTS_KEY, Results
from unified_lift.bench.figures import all_figures
from unified_lift.bench.grid import method_key, read_json
from unified_lift.bench.sheets import Sheet, ran_on
from unified_lift.bench.tables import MaskSet
from unified_lift.data import load_annotations
from unified_lift.data.settings import DataSettings
from unified_lift.evaluation.pictures import object_colors, partner_colors, read_picture
from unified_lift.evaluation.report import chosen_views, data_uri, inline_picture, write_html

VIEWS_SHOWN = 2
_DPI = 130


def write_page(path: Path, results: Results, sheets: Sequence[Sheet]) -> None:
    """Write the page; it loads nothing from anywhere."""
    plan = results.plan
    states = [place.state.status for place in results.measured]
    write_html(
        path,
        Path(__file__).with_name("page.html"),
        title=plan.table.title,
        subtitle=(
            f"{len(plan.scenes)} scenes, {len(plan.rows)} methods, {len(plan.seeds)} seeds; "
            f"{states.count('done')} of {len(states)} results are there; {plan.iterations:,} geometry iterations"
        ),
        sheets=[_shown(sheet) for sheet in sheets],
        plots=[(caption, _plot_uri(figure)) for caption, figure in all_figures(results).items()],
        galleries=[gallery for masks in plan.table.masks for gallery in _galleries(results, masks)],
        ran_on=ran_on(results),
        extra=" ".join(plan.extra),
    )


def matched_colors(ids: np.ndarray, details: Mapping[str, object]) -> np.ndarray:
    """Return predicted ids in the colours of the true objects they are matched with, uint8 [H, W, 3].

    So an object has one colour in the truth and under every method; a predicted object without partner is light grey.

    Args:
        ids: Predicted ids, [H, W].
        details: Report of the protocol; without a matching every id has a colour of its own.
    """
    if "objects" not in details:
        return object_colors(ids)
    entries = details["objects"]
    partners = {entry["pred_id"]: entry["true_id"] for entry in entries if entry["pred_id"] is not None}
    if "background_id" in details:
        partners[details["background_id"]] = 0
    return partner_colors(ids, partners)


def _shown(sheet: Sheet) -> dict[str, object]:
    rows = [[(word, (index, at) in sheet.best) for at, word in enumerate(row)] for index, row in enumerate(sheet.rows)]
    return {"title": sheet.title, "header": sheet.header, "rows": rows, "notes": sheet.notes}


def _galleries(results: Results, masks: MaskSet) -> list[dict[str, object]]:
    """Return the pictures of each scene, of the first seed that has some."""
    galleries = []
    for scene in results.plan.scenes:
        models = {}
        for row in results.plan.rows:
            places = [results.at(masks, row, scene.name, seed) for seed in results.plan.seeds]
            done = [place.seed for place in places if place.state.status == "done"]
            if done and not row.model:
                models[row.name] = results.plan.out / method_key(scene.name, masks.folder, row, done[0])
        if models:
            views = _views(scene.path, models)
            galleries.append({"title": f"{scene.name}, masks {masks.folder}", "views": views})
    return galleries


def _views(scene: Path, models: Mapping[str, Path]) -> list[dict[str, object]]:
    folders = {name: model / "test" / RESULTS_KEY for name, model in models.items()}
    photos = next(iter(folders.values())) / "gt"
    names = [str(path.relative_to(photos).with_suffix("")) for path in photos.rglob("*.png")]
    chosen = chosen_views(sorted(names, key=lambda name: (len(name), name)), count=VIEWS_SHOWN)
    truth = load_annotations(DataSettings(source_path=scene), chosen)
    views = []
    for name in chosen:
        pictures = [("photo", inline_picture(read_picture(photos / f"{name}.png"), photo=True))]
        if name in truth:
            pictures.append(("truth", inline_picture(object_colors(truth[name]), photo=False)))
        for row, folder in folders.items():
            path = folder / "objects_pred" / f"{name}.png"
            if path.exists():
                details = read_json(models[row] / "evaluation.json").get(RESULTS_KEY, {})
                pictures.append((row, inline_picture(matched_colors(read_picture(path), details), photo=False)))
        views.append({"name": name, "pictures": pictures})
    return views


def _plot_uri(figure: object) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return data_uri("png", buffer.getvalue())
