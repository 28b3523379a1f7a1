"""What scoring writes: results.json, per_view.json, evaluation.json, masks, plots and a self-contained HTML report."""

import base64
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from unified_lift.evaluation import pictures
from unified_lift.evaluation.evaluate import Result
from unified_lift.evaluation.pictures import object_colors, picture_path, read_ids, read_picture
from unified_lift.evaluation.plots import write_plots
from unified_lift.evaluation.protocols import metric_of
from unified_lift.fileio import read_json, write_json, write_text
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.settings import TrainSettings, changed, recorded
from unified_lift.provenance import told_tree
from unified_lift.settings.yaml import differences
from unified_lift.types import Scene

REPORT = Path(__file__).with_name("report.html")  # the page of a trained scene
MAX_VIEWS = 12  # shown in the page, so that it stays small enough to send by mail
MAX_WIDTH = 480  # pixels, to which pictures in the page are reduced


def write_result(model: TrainedScene, scene: Scene, result: Result, *, log_lines: Sequence[Mapping[str, Any]]) -> None:
    """Write all files for the scores of stored renderings, keeping what they say about other iterations.

    `log_lines` are those of metrics.jsonl, for the plots. A UserError: a file is damaged.
    """
    path, shown, names = model.path, f"ours_{model.iteration}", [view.name for view in scene.test]
    folder = pictures.pictures_dir(path, "test", model.iteration)
    # As Gaussian Grouping's scorer reads them; those that words found can be the start of other models.
    masks = {f"test_mask/{index}": result.masks.get(name, {}) for index, name in enumerate(sorted(names))}
    masks["reference_mask"] = result.text.masks if result.text is not None else {}
    for group, found in masks.items():
        for prompt, mask in found.items():
            pictures.write_picture(picture_path(folder.with_name(f"{folder.name}_text"), group, prompt), mask)
    tell = partial(told_tree, base=path, how=model.settings.run.provenance)
    report = tell(result.report)
    contents = {"results": result.scores, "per_view": result.per_view, "evaluation": report}
    for name, content in contents.items():
        if content:
            file = path / f"{name}.json"
            write_json(file, (read_json(file) if file.exists() else {}) | {shown: content})
    manifest = path / "manifest.json"
    write_html(
        path / "report.html",
        REPORT,
        title=f"{scene.name}, iteration {model.iteration}",
        shown=shown,
        results=read_json(path / "results.json"),
        per_view={name: values for name, values in result.per_view.items() if values},
        plots=write_plots(path / "plots", per_view=result.per_view, log_lines=log_lines),
        pictures={name: _pictures_of(folder, name, result) for name in chosen_views(names)},
        num_views=len(names),
        manifest=tell(read_json(manifest)) if manifest.exists() else {},
        settings=_settings_that_differ(model),
        details=report,
    )


def _settings_that_differ(model: TrainedScene) -> dict[str, tuple[Any, Any]]:
    """Return dotted name -> default and value, with paths as the files of the model name them."""
    defaults = changed(TrainSettings(), {"method_name": model.settings.method_name}, origin="method_name")
    content: Any = recorded(model.settings, model.path)
    found = differences(defaults, model.settings)
    values = {name: reduce(lambda tree, part: tree[part], name.split("."), content) for name in found}
    return {name: (found[name][0], value) for name, value in values.items() if name != "model_path"}


def _pictures_of(folder: Path, name: str, result: Result) -> dict[str, np.ndarray]:
    """Return caption -> picture of one view, in the order of the report; what does not apply is absent."""
    ground_truth, report = result.ground_truth, result.report
    render = read_picture(picture_path(folder, "renders", name))
    shown = {"photo": read_picture(picture_path(folder, "gt", name)), "render": render}
    if name in ground_truth.annotations:
        partners = {entry["true_id"]: entry["pred_id"] for entry in report.get("objects", ())}
        partners[0] = report.get("background_id", 0)
        shown["true objects"] = pictures.partner_colors(ground_truth.annotations[name], partners)
    prompts = [entry["prompt"] for entry in report.get("prompts", ())]
    for caption, masks in (("true prompts", ground_truth.prompt_masks), ("predicted prompts", result.masks)):
        if name in ground_truth.prompt_masks and name in masks:
            ids = np.zeros(next(iter(masks[name].values())).shape, dtype=np.int32)
            for prompt, mask in masks[name].items():  # where several overlap the last is seen
                ids[mask] = 1 + prompts.index(prompt)
            shown[caption] = object_colors(ids)
    if picture_path(folder, "objects_pred", name).exists():
        ids = read_ids(picture_path(folder, "objects_pred", name))
        shown |= {"predicted objects": object_colors(ids), "overlay": pictures.overlay(render, ids)}
        shown["uncertainty"] = read_picture(picture_path(folder, "uncertainty", name))
    return shown


def write_html(path: Path, template: Path, **facts: object) -> None:
    """Write a jinja2 template filled with facts, whole or not at all; text in them is escaped, nothing is loaded.

    Templates may use the filters `metric` (of a name), `score(name)`, `words`, `duration`, `color` (of an object id,
    None: unmatched), `picture(caption)`, `png` (of a file), `keys` (of several mappings) and `worst_first(columns)`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    unmatched = pictures.UNMATCHED_COLOR
    environment.filters |= {
        "metric": metric_of,
        "score": lambda value, name: "" if jinja2.is_undefined(value) else metric_of(name).text(value),
        "words": _words,
        "duration": duration_text,
        "color": lambda i: "#%02x%02x%02x" % tuple(unmatched if i is None else object_colors(np.array(i))),
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
