"""eval.py: scores of a trained scene on its held-out views, as a table, JSON files and an HTML report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from unified_lift.cli.flags import canonical
from unified_lift.cli.render import OBJECT_PICTURES, picture_path, pictures_dir, render_split
from unified_lift.cli.scoring import (
    ReferenceImage,
    chosen_protocol,
    grounder,
    has_truth,
    require_candidates,
    score_candidates,
    score_model,
    truth_for,
    write_prompt_mask,
)
from unified_lift.device import chosen_device
from unified_lift.errors import UserError
from unified_lift.evaluation.grounding import grounding_of
from unified_lift.evaluation.pictures import object_colors, overlay, read_picture, truth_colors
from unified_lift.evaluation.protocols import PROTOCOLS, ProtocolResult, Subject
from unified_lift.evaluation.report import chosen_views, format_value, write_plots, write_report
from unified_lift.metrics.image import psnr, ssim
from unified_lift.modelfolder.inference import TrainedScene, open_model
from unified_lift.modelfolder.outputs import iteration_dir, write_text
from unified_lift.modelfolder.settings import TrainSettings, changed
from unified_lift.settings.yaml import differences
from unified_lift.train.logs import read_log
from unified_lift.types import Scene, View

_COLOR_PICTURES = ("renders", "gt")
PerView = dict[str, dict[str, float]]
"""Metric -> view name -> value, as 3DGS writes per_view.json."""


@dataclass(frozen=True, kw_only=True)
class EvalCommand:
    """Score a trained scene on its held-out views; pictures that are missing or old are rendered first.

    Example: eval.py -m output/desk
    """

    model_path: Path
    """Model folder (-m) [3DGS]."""
    iteration: int = -1
    """Saved iteration; -1 = the last [3DGS]."""
    source_path: Path | None = None
    """Scene folder (-s), if it has moved since training."""
    protocol: str = "auto"
    """`generic`, `messy_rooms`, `replica` or `lerf_mask`, see docs/protocols.md; `auto`: the dataset's own."""
    grounding: str | None = None
    """lerf_mask: what finds the prompts in the first test view: a folder of `<prompt>.png`, or `dino:DIR,sam:DIR` with
    weights as `transformers` saves them."""
    reference_image: ReferenceImage = "dataset"
    """lerf_mask: the picture in which they are found: the photo or the model's rendering [Gaussian Grouping]."""
    oracle_codebooks: bool = False
    """Also score every clustering that the method kept, into oracle.json; the best of them read the annotations."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to render what is missing; `auto`: a CUDA device if there is one and the rasterizer was built for it."""
    quiet: bool = False
    """No progress bars [3DGS]."""


def eval_main(argv: list[str]) -> int:
    """Parse, render what is missing, score, write, print. Return the exit code."""
    command = tyro.cli(EvalCommand, args=canonical(argv), prog="eval.py")
    if command.protocol not in ("auto", *PROTOCOLS):
        raise UserError(f"--protocol {command.protocol}: there are auto, {', '.join(PROTOCOLS)}")
    device = chosen_device(command.device)
    model, scene = open_model(
        command.model_path, iteration=command.iteration, source_path=command.source_path, device=device
    )
    if model.is_edited:
        raise UserError(
            f"{command.model_path}: this scene was edited, so photos and annotations do not show it; score the model "
            "it was made from"
        )
    if not scene.test:
        raise UserError(
            f"{command.model_path}: no view was held out, nothing to score on; train with train.py ... --eval"
        )
    protocol = chosen_protocol(command.protocol, model.settings.data)
    if command.grounding is not None and protocol.truth != "prompt_masks":
        raise UserError(f"--grounding: protocol {protocol.name} has no prompts; leave it out or choose lerf_mask")
    if command.oracle_codebooks:
        require_candidates(model)
    grounding = grounding_of(command.grounding, device=device) if command.grounding is not None else None
    folder = pictures_dir(command.model_path, "test", model.iteration)
    render_stale(model, command.model_path, scene.test, folder, quiet=command.quiet)
    per_view = image_scores(scene.test, folder)
    truth = truth_for(protocol, model.settings.data, _names(scene)) if model.is_lifted else None
    if truth is not None and not has_truth(truth) and command.protocol != "auto":
        raise UserError(f"--protocol {protocol.name}: {scene.name} has no {protocol.truth}; leave it out or add them")
    objects = None
    if truth is not None and has_truth(truth):
        text_dir = folder.with_name(f"{folder.name}_text")
        if grounding is not None:
            find = grounder(grounding, folder, image=command.reference_image, masks_dir=text_dir / "reference_mask")
            truth = replace(truth, ground=find)
        objects = score_model(protocol, truth, model, scene, stored_ids(scene, folder))
        write_prompt_masks(text_dir, scene, objects)
    scores = summary(per_view, objects) | model_facts(model, command.model_path)
    if objects is not None:
        per_view |= _by_metric(objects.per_view)
    write_results(command.model_path, model.iteration, scores, per_view, objects)
    write_pages(command.model_path, model, scene, truth, objects)
    _print_scores(command.model_path, model, scene, scores, objects)
    if command.oracle_codebooks:
        if truth is None or objects is None:
            raise UserError("--oracle_codebooks: there are no objects or no annotations to choose by; leave it out")
        sweep = score_candidates(protocol, truth, model, scene, quiet=command.quiet)
        write_text(command.model_path / "oracle.json", json.dumps(sweep, indent=1, allow_nan=False))
        _print_sweep(command.model_path, sweep)
    return 0


def render_stale(model: TrainedScene, model_path: Path, views: Sequence[View], folder: Path, *, quiet: bool) -> None:
    """Render the views whose pictures are missing or older than the model."""
    saved = max(path.stat().st_mtime for path in iteration_dir(model_path, model.iteration).iterdir())
    kinds = (*_COLOR_PICTURES, *(OBJECT_PICTURES if model.is_lifted else ()))

    def is_stale(view: View) -> bool:
        paths = [picture_path(folder, kind, view.name) for kind in kinds]
        return any(not path.exists() or path.stat().st_mtime < saved for path in paths)

    stale = [view for view in views if is_stale(view)]
    if stale:
        render_split(model, stale, folder, quiet=quiet)


def image_scores(views: Sequence[View], folder: Path) -> PerView:
    """Return PSNR (dB) and SSIM of the stored 8-bit renderings; equal pictures have no finite PSNR, hence none.

    Pixels the lens did not see are left out of PSNR; for SSIM, which needs neighbours, they are black in both.
    """
    scores: PerView = {"PSNR": {}, "SSIM": {}}
    for view in views:
        path = picture_path(folder, "renders", view.name)
        stored = read_picture(path)
        if stored.shape != tuple(view.image.shape):
            raise UserError(f"{path}: size differs from the photo's; delete {folder} and run eval.py again")
        render, photo = torch.from_numpy(stored) / 255, view.image / 255
        valid = torch.ones(photo.shape[:2], dtype=torch.bool) if view.valid is None else view.valid
        decibels = psnr(render[valid][None], photo[valid][None])
        if math.isfinite(decibels):
            scores["PSNR"][view.name] = decibels
        scores["SSIM"][view.name] = ssim(render * valid[..., None], photo * valid[..., None])
    return scores


def stored_ids(scene: Scene, folder: Path) -> dict[str, np.ndarray]:
    """Return the object ids of the stored pictures, int32 [H, W], by view."""
    return {name: read_picture(picture_path(folder, "objects_pred", name)) for name in _names(scene)}


def write_prompt_masks(folder: Path, scene: Scene, objects: ProtocolResult) -> None:
    """Write `<folder>/test_mask/<index of the view>/<prompt>.png` as Gaussian Grouping's scorer reads them."""
    for index, name in enumerate(sorted(_names(scene))):
        for prompt, mask in objects.masks.get(name, {}).items():
            write_prompt_mask(folder / "test_mask" / str(index) / f"{prompt}.png", mask)


def summary(per_view: PerView, objects: ProtocolResult | None) -> dict[str, float]:
    """Return the scene's scores: those of the protocol, and means over views of the image scores."""
    means = {metric: float(np.mean(list(values.values()))) for metric, values in per_view.items() if values}
    return (objects.scene if objects is not None else {}) | means


def model_facts(model: TrainedScene, model_path: Path) -> dict[str, float]:
    """Return what is counted in 3D: Gaussians, and objects that own some."""
    facts = {"num_gaussians": len(model.gaussians)}
    listed = iteration_dir(model_path, model.iteration) / "objects.json"
    if listed.exists():
        facts["num_objects_3d"] = len(_read_json(listed))
    return facts


def write_results(
    model_path: Path, iteration: int, scores: Mapping[str, float], per_view: PerView, objects: ProtocolResult | None
) -> None:
    """Write results.json, per_view.json and evaluation.json, keeping what they say about other iterations."""
    files: dict[str, Mapping[str, Any]] = {"results.json": scores, "per_view.json": per_view}
    if objects is not None:
        files["evaluation.json"] = objects.report
    for name, content in files.items():
        path = model_path / name
        merged = (_read_json(path) if path.exists() else {}) | {f"ours_{iteration}": content}
        write_text(path, json.dumps(merged, indent=1, allow_nan=False))


def write_pages(
    model_path: Path, model: TrainedScene, scene: Scene, truth: Subject | None, objects: ProtocolResult | None
) -> None:
    """Write report.html and plots/*.png from the JSON files, logs and pictures of the model folder."""
    shown = f"ours_{model.iteration}"
    per_view = _read_json(model_path / "per_view.json")[shown]
    plots = write_plots(model_path / "plots", per_view=per_view, log_lines=read_log(model_path))
    folder = pictures_dir(model_path, "test", model.iteration)
    details = objects.report if objects is not None else {}
    manifest = model_path / "manifest.json"
    write_report(
        model_path / "report.html",
        title=f"{scene.name}, iteration {model.iteration}",
        shown=shown,
        results=_read_json(model_path / "results.json"),
        per_view=per_view,
        plots=plots,
        pictures={name: _pictures_of(folder, name, truth, objects) for name in chosen_views(_names(scene))},
        num_views=len(scene.test),
        manifest=_read_json(manifest) if manifest.exists() else {},
        settings=differences(_defaults(model.settings), model.settings),
        details=details,
    )


def _defaults(settings: TrainSettings) -> TrainSettings:
    """Return the program's defaults for the method of `settings`."""
    return changed(TrainSettings(), {"method_name": settings.method_name}, origin="method_name")


def _pictures_of(
    folder: Path, name: str, truth: Subject | None, objects: ProtocolResult | None
) -> dict[str, np.ndarray]:
    """Return caption -> picture of one view, in the order of the report; what does not apply is absent."""
    render = read_picture(picture_path(folder, "renders", name))
    pictures = {"photo": read_picture(picture_path(folder, "gt", name)), "render": render}
    if truth is not None and objects is not None and name in truth.annotations:
        partners = {entry["true_id"]: entry["pred_id"] for entry in objects.report.get("objects", ())}
        background = objects.report.get("background_id", 0)
        pictures["true objects"] = truth_colors(truth.annotations[name], partners, background=background)
    if truth is not None and objects is not None and name in truth.prompt_masks:
        prompts = [entry["prompt"] for entry in objects.report["prompts"]]
        pictures["true prompts"] = _prompt_colors(truth.prompt_masks[name], prompts)
        if name in objects.masks:
            pictures["predicted prompts"] = _prompt_colors(objects.masks[name], prompts)
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


def _names(scene: Scene) -> list[str]:
    return [view.name for view in scene.test]


def _by_metric(per_view: Mapping[str, Mapping[str, float]]) -> PerView:
    """Return metric -> view -> value of view -> metric -> value."""
    turned: PerView = {}
    for name, scores in per_view.items():
        for metric, value in scores.items():
            turned.setdefault(metric, {})[name] = value
    return turned


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable JSON ({error}); delete it and run eval.py again") from None


def _print_scores(
    model_path: Path, model: TrainedScene, scene: Scene, scores: Mapping[str, float], objects: ProtocolResult | None
) -> None:
    protocol = f", protocol {objects.report['protocol']}" if objects is not None else ""
    print(f"{scene.name}, iteration {model.iteration}, {len(scene.test)} held-out views{protocol}")
    width = max(map(len, scores))
    for name, value in scores.items():
        print(f"  {name:<{width}}  {format_value(name, value):>10}")
    unseen = [1 - float(view.valid.float().mean()) for view in scene.test if view.valid is not None]
    if unseen:
        print(f"note: {max(unseen):.1%} of the pixels (black frame) are left out of the image scores")
    if not model.is_lifted:
        print("note: this model knows no objects (no lift was trained): only image scores")
    elif objects is None:
        print("note: the held-out views have no annotations: only image scores")
    else:
        for warning in objects.report["warnings"]:
            print(f"warning: {warning}")
    print(f"{model_path / 'report.html'}: pictures and plots")


def _print_sweep(model_path: Path, sweep: Mapping[str, Any]) -> None:
    headline = sweep["headline"]
    for name, scores in sweep["candidates"].items():
        marks = [mark for mark in ("best", "chosen") if sweep[mark] == name]
        value = format_value(headline, scores[headline]) if headline in scores else "does not apply"
        print(f"  {name}: {headline} {value} {', '.join(marks)}".rstrip())
    print(f"warning: {sweep['warning']}")
    print(f"{model_path / 'oracle.json'}: all candidates")
