"""What scoring writes into a model folder: results.json, per_view.json, evaluation.json, masks, plots, report.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_lift.evaluation.evaluate import Result
from unified_lift.evaluation.pictures import object_colors, overlay, partner_colors, read_picture, write_picture
from unified_lift.evaluation.plots import write_plots
from unified_lift.evaluation.renderings import picture_path, pictures_dir
from unified_lift.evaluation.report import REPORT, chosen_views, write_html
from unified_lift.fileio import read_json, write_json
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.settings import TrainSettings, changed
from unified_lift.settings.yaml import differences
from unified_lift.types import Scene


def write_result(model: TrainedScene, scene: Scene, result: Result, *, log_lines: Sequence[Mapping[str, Any]]) -> None:
    """Write all files, keeping what they say about other iterations; a UserError if one is damaged.

    Args:
        result: What `evaluate` returned for the stored renderings of the model.
        log_lines: Of metrics.jsonl, for the plots.
    """
    model_path, shown, names = model.path, f"ours_{model.iteration}", [view.name for view in scene.test]
    folder = pictures_dir(model_path, "test", model.iteration)
    _write_prompt_masks(folder.with_name(f"{folder.name}_text"), names, result)
    results = _merged(model_path / "results.json", shown, result.scores)
    _merged(model_path / "per_view.json", shown, result.per_view)
    if result.report:
        _merged(model_path / "evaluation.json", shown, result.report)
    plots = write_plots(model_path / "plots", per_view=result.per_view, log_lines=log_lines)
    manifest = model_path / "manifest.json"
    defaults = changed(TrainSettings(), {"method_name": model.settings.method_name}, origin="method_name")
    write_html(
        model_path / "report.html",
        REPORT,
        title=f"{scene.name}, iteration {model.iteration}",
        shown=shown,
        results=results,
        per_view={name: values for name, values in result.per_view.items() if values},
        plots=plots,
        pictures={name: _pictures_of(folder, name, result) for name in chosen_views(names)},
        num_views=len(names),
        manifest=read_json(manifest) if manifest.exists() else {},
        settings=differences(defaults, model.settings),
        details=result.report,
    )


def _write_prompt_masks(folder: Path, names: Sequence[str], result: Result) -> None:
    """Write what words found, and `test_mask/<index>/<prompt>.png` as Gaussian Grouping's scorer reads them."""
    groups = {f"test_mask/{index}": result.masks.get(name, {}) for index, name in enumerate(sorted(names))}
    groups["reference_mask"] = result.text.masks if result.text is not None else {}  # for other models to start from
    for group, masks in groups.items():
        for prompt, mask in masks.items():
            write_picture(folder / group / f"{prompt}.png", mask)


def _merged(path: Path, key: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Set one entry of a JSON file and return all of them."""
    merged = (read_json(path) if path.exists() else {}) | {key: content}
    write_json(path, merged)
    return merged


def _pictures_of(folder: Path, name: str, result: Result) -> dict[str, np.ndarray]:
    """Return caption -> picture of one view, in the order of the report; what does not apply is absent."""
    ground_truth, report = result.ground_truth, result.report
    render = read_picture(picture_path(folder, "renders", name))
    pictures = {"photo": read_picture(picture_path(folder, "gt", name)), "render": render}
    if name in ground_truth.annotations:
        partners = {entry["true_id"]: entry["pred_id"] for entry in report.get("objects", ())}
        partners[0] = report.get("background_id", 0)
        pictures["true objects"] = partner_colors(ground_truth.annotations[name], partners)
    if name in ground_truth.prompt_masks:
        prompts = [entry["prompt"] for entry in report["prompts"]]
        pictures["true prompts"] = _prompt_colors(ground_truth.prompt_masks[name], prompts)
        if name in result.masks:
            pictures["predicted prompts"] = _prompt_colors(result.masks[name], prompts)
    if picture_path(folder, "objects_pred", name).exists():
        ids = read_picture(picture_path(folder, "objects_pred", name))
        pictures |= {"predicted objects": object_colors(ids), "overlay": overlay(render, ids)}
        pictures["uncertainty"] = read_picture(picture_path(folder, "uncertainty", name))
    return pictures


def _prompt_colors(masks: Mapping[str, np.ndarray], prompts: Sequence[str]) -> np.ndarray:
    """Return the masks in one colour for each prompt, uint8 [H, W, 3]; where several overlap the last is seen."""
    ids = np.zeros(next(iter(masks.values())).shape, dtype=np.int32)
    for prompt, mask in masks.items():
        ids[mask] = 1 + prompts.index(prompt)
    return object_colors(ids)
