"""Self-contained HTML pages: the report of a trained scene, and what other pages share with it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from unified_lift.evaluation.pictures import UNMATCHED_COLOR, object_colors
from unified_lift.evaluation.protocols import metric_of
from unified_lift.fileio import write_text

MAX_VIEWS = 12
"""Views shown in the page, evenly chosen, so that it stays small enough to send by mail."""
MAX_WIDTH = 480
"""Width in pixels to which pictures in the page are reduced."""

_PHOTOS = ("photo", "render")  # stored as JPEG; flat colours stay PNG
_JPEG_QUALITY = 88
_PROMPT_SCORES = ("IoU", "BIoU", "IoU_oracle", "BIoU_oracle", "IoU_best_id")
_MANIFEST_FACTS = ("program", "commit", "command", "seed", "python", "torch", "machine", "threads")
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


def write_html(path: Path, template: Path, **facts: Any) -> None:  # noqa: ANN401 (whatever the template asks for)
    """Write a jinja2 template filled with facts, whole or not at all; text in them is escaped.

    A template may extend `base.html`, which holds the style that all pages share.
    """
    folders = [template.parent, Path(__file__).parent]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    write_text(path, environment.get_template(template.name).render(**facts))


def format_value(name: str, value: float) -> str:
    """Return a score as people read it: counts whole, PSNR in dB, SSIM with four digits, fractions in percent."""
    return metric_of(name).text(value)


def chosen_views(names: Sequence[str], *, count: int = MAX_VIEWS) -> list[str]:
    """Return at most `count` names, evenly spread, first and last included."""
    if len(names) <= count:
        return list(names)
    return [names[index] for index in np.linspace(0, len(names) - 1, count).round().astype(int)]


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
    columns = sorted(results, key=lambda key: (key != shown, key))
    names = list(dict.fromkeys(name for column in columns for name in results[column]))
    scored = {name: values for name, values in per_view.items() if values}
    view_names = dict.fromkeys(view for values in scored.values() for view in values)
    prompt_scores = [name for name in _PROMPT_SCORES if any(name in entry for entry in details.get("prompts", ()))]
    write_html(
        path,
        Path(__file__).with_name("report.html"),
        title=title,
        manifest=manifest,
        tiles=_tiles(results[shown], manifest),
        columns=columns,
        rows=[(name, metric_of(name).label, [_cell(results[c], name) for c in columns]) for name in names],
        warnings=details.get("warnings", ()),
        views=_views(pictures, scored),
        num_views=num_views,
        objects=_objects(details),
        prompt_columns=prompt_scores,
        prompts=_prompts(details.get("prompts", ()), prompt_scores),
        view_columns=list(scored),
        view_rows=[
            (view, [_cell({name: values.get(view) for name, values in scored.items()}, name) for name in scored])
            for view in view_names
        ],
        plots=[(caption, data_uri("png", file.read_bytes())) for caption, file in plots.items()],
        settings=[(name, _text(default), _text(value)) for name, (default, value) in settings.items()],
        facts=_facts(manifest, details),
    )


def _cell(scores: Mapping[str, float | None], name: str) -> str:
    value = scores.get(name)
    return "" if value is None else format_value(name, value)


def _tiles(scores: Mapping[str, float], manifest: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (value, name, explanation) of the numbers at the top."""
    metrics = [metric_of(name) for name in scores]
    tiles = [(m.text(scores[m.name]), m.name, m.label) for m in metrics if m.is_headline]
    if "num_objects_true" in scores:
        pair = f"{int(scores['num_objects_pred'])} / {int(scores['num_objects_true'])}"
        tiles.append((pair, "objects", "predicted / annotated"))
    if manifest.get("seconds"):
        gaussians = f"{format_value('num_gaussians', scores['num_gaussians'])} Gaussians"
        tiles.append((duration_text(sum(manifest["seconds"].values())), "training", gaussians))
    return tiles


def _views(
    pictures: Mapping[str, Mapping[str, np.ndarray]], per_view: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Return the name, the scores and the pictures of each shown view; mere facts are not scores."""
    metrics = [metric_of(name) for name in per_view]
    return [
        {
            "name": view,
            "scores": [
                (m.name, m.text(per_view[m.name][view]))
                for m in metrics
                if m.higher_is_better is not None and view in per_view[m.name]
            ],
            "pictures": [(caption, inline_picture(shot, photo=caption in _PHOTOS)) for caption, shot in shots.items()],
        }
        for view, shots in pictures.items()
    ]


def _objects(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the annotated objects, worst first, with the colour of their partner."""
    objects = []
    for entry in sorted(details.get("objects", ()), key=lambda entry: entry["iou"]):
        color = UNMATCHED_COLOR if entry["pred_id"] is None else object_colors(np.array(entry["pred_id"]))
        style = {"color": "#{:02x}{:02x}{:02x}".format(*color), "percent": round(100 * entry["iou"], 1)}
        objects.append({**entry, **style})
    return objects


def _prompts(entries: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[tuple[str, int, str, list[str]]]:
    """Return name, number of views, ids and scores of each text prompt, worst first."""
    rows = []
    for entry in sorted(entries, key=lambda entry: [entry.get(name, 0.0) for name in columns]):
        ids = _text(entry.get("ids", entry.get("ids_oracle", ())))
        rows.append((entry["prompt"], entry["num_views"], ids or "none", [_cell(entry, name) for name in columns]))
    return rows


def _facts(manifest: Mapping[str, Any], details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the numbers rest on: versions, timing, protocol."""
    return [
        *((key, str(manifest[key])) for key in _MANIFEST_FACTS if manifest.get(key) is not None),
        *(("note", note) for note in manifest.get("notes", ())),
        *((f"time of {stage}", duration_text(seconds)) for stage, seconds in manifest.get("seconds", {}).items()),
        *((f"rasterizer {key}", str(value)) for key, value in manifest.get("rasterizer", {}).items()),
        *((key.replace("_", " "), _text(details[key])) for key in _PROTOCOL_FACTS if details.get(key) is not None),
    ]


def duration_text(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _text(value: object) -> str:
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
    _, buffer = cv2.imencode(suffix, picture[..., ::-1], options)
    return data_uri(mime, buffer.tobytes())


def data_uri(mime: str, content: bytes) -> str:
    """Return an image as a URI that needs no file."""
    return f"data:image/{mime};base64,{base64.b64encode(content).decode()}"
