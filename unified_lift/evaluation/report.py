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


def write_html(path: Path, template: Path, **facts: object) -> None:
    """Write a jinja2 template filled with facts, whole or not at all; text in them is escaped, nothing is loaded.

    Templates may use the filters `score(name)`, `words`, `duration`, `color` (of an object id, None: unmatched),
    `picture(caption)` and `png` (of a file).
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "score": lambda value, name: "" if jinja2.is_undefined(value) else format_value(name, value),
        "words": _words,
        "duration": duration_text,
        "color": lambda i: "#%02x%02x%02x" % tuple(UNMATCHED_COLOR if i is None else object_colors(np.array(i))),
        "picture": lambda picture, caption: inline_picture(picture, photo=caption in _PHOTOS),
        "png": lambda file: data_uri("png", file.read_bytes()),
    }
    write_text(path, environment.get_template(template.name).render(**facts))


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
    """Write the page of a trained scene.

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
    scored = {name: values for name, values in per_view.items() if values}
    prompts = details.get("prompts", ())
    asked = ("IoU", "BIoU", "IoU_oracle", "BIoU_oracle", "IoU_best_id")
    prompt_columns = [name for name in asked if any(name in entry for entry in prompts)]
    write_html(
        path,
        Path(__file__).with_name("report.html"),
        title=title,
        scores=results[shown],
        results={column: results[column] for column in columns},
        metrics=[metric_of(name) for name in dict.fromkeys(name for column in columns for name in results[column])],
        per_view=scored,
        view_metrics=[metric_of(name) for name in scored],
        view_names=list(dict.fromkeys(view for values in scored.values() for view in values)),
        plots=plots,
        pictures=pictures,
        num_views=num_views,
        manifest=manifest,
        settings=settings,
        details=details,
        objects=sorted(details.get("objects", ()), key=lambda entry: entry["iou"]),
        prompts=sorted(prompts, key=lambda entry: [entry.get(name, 0.0) for name in prompt_columns]),
        prompt_columns=prompt_columns,
    )


def format_value(name: str, value: float) -> str:
    """Return a score as people read it: counts whole, PSNR in dB, SSIM with four digits, fractions in percent."""
    return metric_of(name).text(value)


def chosen_views(names: Sequence[str], *, count: int = MAX_VIEWS) -> list[str]:
    """Return at most `count` names, evenly spread, first and last included."""
    return [names[index] for index in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)]


def duration_text(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, (list, tuple)) else str(value)


def inline_picture(picture: np.ndarray, *, photo: bool) -> str:
    """Return a data URI of a picture, reduced to MAX_WIDTH."""
    height, width = picture.shape[:2]
    if width > MAX_WIDTH:
        how = cv2.INTER_AREA if photo else cv2.INTER_NEAREST
        picture = cv2.resize(picture, (MAX_WIDTH, max(1, round(height * MAX_WIDTH / width))), interpolation=how)
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if photo else [cv2.IMWRITE_PNG_COMPRESSION, 6]
    _, buffer = cv2.imencode(".jpg" if photo else ".png", picture[..., ::-1], options)
    return data_uri("jpeg" if photo else "png", buffer.tobytes())


def data_uri(mime: str, content: bytes) -> str:
    """Return an image as a URI that needs no file."""
    return f"data:image/{mime};base64,{base64.b64encode(content).decode()}"
