"""Self-contained HTML pages: the report of a trained scene, and what other pages share with it."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import jinja2
import numpy as np

from unified_lift.evaluation.pictures import UNMATCHED_COLOR, object_colors
from unified_lift.evaluation.protocols import metric_of
from unified_lift.fileio import write_text

REPORT = Path(__file__).with_name("report.html")  # the page of a trained scene
MAX_VIEWS = 12  # shown in the page, so that it stays small enough to send by mail
MAX_WIDTH = 480  # pixels, to which pictures in the page are reduced


def write_html(path: Path, template: Path, **facts: object) -> None:
    """Write a jinja2 template filled with facts, whole or not at all; text in them is escaped, nothing is loaded.

    Templates may use the filters `metric` (of a name), `score(name)`, `words`, `duration`, `color` (of an object id,
    None: unmatched), `picture(caption)`, `png` (of a file), `keys` (of several mappings) and `worst_first(columns)`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "metric": metric_of,
        "score": lambda value, name: "" if jinja2.is_undefined(value) else metric_of(name).text(value),
        "words": _words,
        "duration": duration_text,
        "color": lambda i: "#%02x%02x%02x" % tuple(UNMATCHED_COLOR if i is None else object_colors(np.array(i))),
        "picture": _inline,
        "png": lambda file: data_uri("png", file.read_bytes()),
        "keys": lambda mappings: list(dict.fromkeys(key for mapping in mappings for key in mapping)),
        "worst_first": lambda rows, columns: sorted(rows, key=lambda row: [row.get(name, 0.0) for name in columns]),
    }
    write_text(path, environment.get_template(template.name).render(**facts))


def chosen_views(names: Sequence[str], *, count: int = MAX_VIEWS) -> list[str]:
    """Return at most `count` names, evenly spread, first and last included."""
    return [names[index] for index in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)]


def duration_text(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, (list, tuple)) else str(value)


def _inline(picture: np.ndarray, caption: str) -> str:
    """Return a data URI of a picture reduced to MAX_WIDTH: photos as JPEG, flat colours as PNG."""
    how, kind, options = cv2.INTER_NEAREST, "png", [cv2.IMWRITE_PNG_COMPRESSION, 6]
    if caption in ("photo", "render"):
        how, kind, options = cv2.INTER_AREA, "jpeg", [cv2.IMWRITE_JPEG_QUALITY, 88]
    height, width = picture.shape[:2]
    if width > MAX_WIDTH:
        picture = cv2.resize(picture, (MAX_WIDTH, max(1, round(height * MAX_WIDTH / width))), interpolation=how)
    return data_uri(kind, cv2.imencode(f".{kind}", picture[..., ::-1], options)[1].tobytes())


def data_uri(mime: str, content: bytes) -> str:
    """Return an image as a URI that needs no file."""
    return f"data:image/{mime};base64,{base64.b64encode(content).decode()}"
