"""The report of a trained scene: one self-contained HTML page, and its plots as PNG."""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from unified_lift.evaluation.pictures import object_colors, replace_file
from unified_lift.evaluation.plots import loss_figure, metric_figure

MAX_VIEWS = 12
"""Views shown in the page, evenly chosen, so that it stays small enough to send by mail."""
MAX_WIDTH = 480
"""Width in pixels to which pictures in the page are reduced."""

_PROTOCOL_FACTS = (
    "protocol",
    "mask_source",
    "resolution",
    "resampling",
    "background_rule",
    "background_id",
    "reference_view",
    "grounding",
    "thresholds",
)
_PHOTOS = ("photo", "render")  # stored as JPEG; flat colours stay PNG
_JPEG_QUALITY = 88
_PLOT_DPI = 130
_COUNTS = "num_"
_VIEW_SCORES = ("PSNR", "SSIM", "mIoU", "mBIoU", "mIoU_oracle", "mBIoU_oracle")
_PROMPT_SCORES = ("IoU", "BIoU", "IoU_oracle", "BIoU_oracle", "IoU_best_id")
_TILES = ("PQ_scene", "mIoU", "mBIoU", "mIoU_oracle", "mIoU_best_id", "F1", "PSNR", "SSIM")
_LABELS = {
    "PQ_scene": "panoptic quality over the scene",
    "SQ_scene": "its segmentation part",
    "RQ_scene": "its recognition part",
    "PQ_things": "panoptic quality of objects",
    "PQ_stuff": "panoptic quality of the background",
    "mIoU": "mean IoU of matched objects, or of prompts",
    "mBIoU": "mean boundary IoU of prompts",
    "mIoU_oracle": "mean IoU of prompts shown in one view",
    "mBIoU_oracle": "their mean boundary IoU",
    "mIoU_best_id": "mean IoU of the best ids: upper bound",
    "mIoU_masked": "mIoU where something is annotated",
    "F1_masked": "F1 where something is annotated",
    "mIoU_viewmean": "mIoU, averaged view by view [Gaga]",
    "F1_viewmean": "F1, averaged view by view [Gaga]",
    "mIoU_from_100_px": "mIoU of objects from 100 pixels on",
    "F1_from_100_px": "F1 of objects from 100 pixels on",
    "F1": "objects found with IoU > 0.5",
    "PSNR": "image quality, dB",
    "SSIM": "structural similarity",
    "num_objects_true": "annotated objects in the held-out views",
    "num_objects_pred": "predicted objects in the held-out views",
    "num_objects_found": "pairs with IoU > 0.5",
    "num_prompts": "text prompts",
    "num_prompt_masks": "their true masks",
    "num_objects_3d": "objects that own Gaussians, background included",
    "num_gaussians": "Gaussians",
}


def format_value(name: str, value: float) -> str:
    """Return a score as people read it: counts whole, PSNR in dB, SSIM with four digits, fractions in percent."""
    if name.startswith(_COUNTS):
        return f"{int(value):,}"
    if name == "PSNR":
        return f"{value:.2f} dB"
    return f"{value:.4f}" if name == "SSIM" else f"{100 * value:.1f} %"


def chosen_views(names: Sequence[str], *, count: int = MAX_VIEWS) -> list[str]:
    """Return at most `count` names, evenly spread, first and last included."""
    if len(names) <= count:
        return list(names)
    return [names[index] for index in np.linspace(0, len(names) - 1, count).round().astype(int)]


def write_plots(
    folder: Path, *, per_view: Mapping[str, Mapping[str, float]], log_lines: Sequence[Mapping[str, Any]]
) -> dict[str, Path]:
    """Write losses.png and metrics.png, and return caption -> file; a plot without data is left out.

    Args:
        folder: Made if missing.
        per_view: Metric -> view -> value.
        log_lines: Lines of metrics.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"Training": ("losses.png", loss_figure(log_lines)), "Scores": ("metrics.png", metric_figure(per_view))}
    written = {}
    for caption, (name, figure) in figures.items():
        if figure is not None:
            save = functools.partial(figure.savefig, format="png", dpi=_PLOT_DPI)
            replace_file(folder / name, save)
            written[caption] = folder / name
    return written


def write_report(
    path: Path,
    *,
    title: str,
    shown: str,
    results: Mapping[str, Mapping[str, float]],
    per_view: Mapping[str, Mapping[str, float]],
    plots: Mapping[str, Path],
    pictures: Mapping[str, Mapping[str, np.ndarray]],
    num_views: int,
    manifest: Mapping[str, Any],
    settings: Mapping[str, tuple[Any, Any]],
    details: Mapping[str, Any],
) -> None:
    """Write the page; it loads nothing from anywhere.

    Args:
        path: HTML file, replaced whole.
        title: Heading.
        shown: Key of `results` the page is about.
        results: Content of results.json.
        per_view: Metric -> view -> value.
        plots: Caption -> PNG file.
        pictures: View -> caption -> uint8 [H, W, 3], the first captions of every view alike.
        num_views: Held-out views altogether.
        manifest: Provenance of the training; may be empty.
        settings: Dotted name -> (default, value) of every setting that differs.
        details: Report of the protocol; may be empty.
    """
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    )
    page = template.render(
        title=title,
        subtitle=_subtitle(manifest, num_views),
        tiles=_tiles(results[shown], manifest),
        tables=_tables(results, shown),
        warnings=details.get("warnings", ()),
        views=_views(pictures, per_view),
        num_views=num_views,
        objects=_objects(details),
        prompts=_prompt_table(details),
        by_view=_view_table(per_view),
        plots=[(caption, data_uri("png", file.read_bytes())) for caption, file in plots.items()],
        settings=[(name, _text(default), _text(value)) for name, (default, value) in settings.items()],
        facts=_facts(manifest, details),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda partial: partial.write_text(page, encoding="utf-8"))


def _subtitle(manifest: Mapping[str, Any], num_views: int) -> str:
    known = [f"{manifest['dataset']} scene, {manifest['train_views']} training views"] if "dataset" in manifest else []
    return ", ".join([*known, f"{num_views} held-out views"])


def _tiles(scores: Mapping[str, float], manifest: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (value, name, explanation) of the numbers at the top."""
    tiles = [(format_value(name, scores[name]), name, _LABELS[name]) for name in _TILES if name in scores]
    if "num_objects_true" in scores:
        pair = f"{int(scores['num_objects_pred'])} / {int(scores['num_objects_true'])}"
        tiles.append((pair, "objects", "predicted / annotated"))
    if manifest.get("seconds"):
        gaussians = f"{format_value('num_gaussians', scores['num_gaussians'])} Gaussians"
        tiles.append((duration_text(sum(manifest["seconds"].values())), "training", gaussians))
    return tiles


def _tables(results: Mapping[str, Mapping[str, float]], shown: str) -> dict[str, Any]:
    """Return the table of all scores: one column for every scored iteration."""
    columns = sorted(results, key=lambda key: (key != shown, key))
    names = list(dict.fromkeys(name for column in columns for name in results[column]))
    rows = []
    for name in names:
        cells = [format_value(name, results[column][name]) if name in results[column] else "" for column in columns]
        rows.append((name, _LABELS.get(name, ""), cells))
    return {"columns": columns, "rows": rows}


def _views(
    pictures: Mapping[str, Mapping[str, np.ndarray]], per_view: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    views = []
    for name, shots in pictures.items():
        scores = [(m, format_value(m, per_view[m][name])) for m in _VIEW_SCORES if name in per_view.get(m, {})]
        images = [(caption, inline_picture(picture, photo=caption in _PHOTOS)) for caption, picture in shots.items()]
        views.append({"name": name, "scores": scores, "pictures": images})
    return views


def _objects(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the annotated objects, worst first, with the colour of their partner."""
    objects = []
    for entry in sorted(details.get("objects", ()), key=lambda entry: entry["iou"]):
        matched = entry["pred_id"] is not None
        color = "#{:02x}{:02x}{:02x}".format(*object_colors(np.array(entry["pred_id"]))) if matched else "#d6d6d6"
        objects.append({**entry, "color": color, "percent": round(100 * entry["iou"], 1)})
    return objects


def _prompt_table(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of all text prompts, worst first; without rows where nothing is asked in words."""
    entries = details.get("prompts", ())
    columns = [name for name in _PROMPT_SCORES if any(name in entry for entry in entries)]
    rows = []
    for entry in sorted(entries, key=lambda entry: [entry.get(name, 0.0) for name in columns]):
        cells = [format_value(name, entry[name]) if name in entry else "" for name in columns]
        ids = _text(entry.get("ids", entry.get("ids_oracle", ())))
        rows.append((entry["prompt"], entry["num_views"], ids or "none", cells))
    return {"columns": columns, "rows": rows}


def _view_table(per_view: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return the table of all scores of all held-out views."""
    columns = [name for name, values in per_view.items() if values]
    names = dict.fromkeys(name for column in columns for name in per_view[column])
    rows = [
        (name, [format_value(c, per_view[c][name]) if name in per_view[c] else "" for c in columns]) for name in names
    ]
    return {"columns": columns, "rows": rows}


def _facts(manifest: Mapping[str, Any], details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the numbers rest on: versions, timing, protocol."""
    facts = []
    for key in ("program", "commit", "command", "seed", "python", "torch", "machine", "threads"):
        if manifest.get(key) is not None:
            facts.append((key, str(manifest[key])))
    facts += [("note", note) for note in manifest.get("notes", ())]
    for stage, seconds in manifest.get("seconds", {}).items():
        facts.append((f"time of {stage}", duration_text(seconds)))
    for key, value in manifest.get("rasterizer", {}).items():
        facts.append((f"rasterizer {key}", str(value)))
    for key in _PROTOCOL_FACTS:
        if details.get(key) is not None:
            facts.append((key.replace("_", " "), _text(details[key])))
    return facts


def duration_text(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)


def inline_picture(picture: np.ndarray, *, photo: bool) -> str:
    """Return a data URI of a picture, reduced to MAX_WIDTH."""
    height, width = picture.shape[:2]
    if width > MAX_WIDTH:
        how = cv2.INTER_AREA if photo else cv2.INTER_NEAREST
        picture = cv2.resize(picture, (MAX_WIDTH, max(1, round(height * MAX_WIDTH / width))), interpolation=how)
    suffix, mime = (".jpg", "jpeg") if photo else (".png", "png")
    options = (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY) if photo else (cv2.IMWRITE_PNG_COMPRESSION, 6)
    done, buffer = cv2.imencode(suffix, picture[..., ::-1], options)
    assert done
    return data_uri(mime, buffer.tobytes())


def data_uri(mime: str, content: bytes) -> str:
    """Return an image as a URI that needs no file."""
    return f"data:image/{mime};base64,{base64.b64encode(content).decode()}"
