"""Scoring a trained scene. `evaluate` returns every number of its held-out views and writes nothing."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from unified_lift.data import detect_reader, load_annotations, load_prompt_masks
from unified_lift.data.masks import same_aspect
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.evaluation.grounding import Grounding, TextMasks
from unified_lift.evaluation.pictures import Rendering, rendering_of
from unified_lift.evaluation.protocols import PROTOCOLS, GroundTruth, PredictionBundle, Protocol, ProtocolResult
from unified_lift.methods.base import Method
from unified_lift.metrics import VIEW_METRICS, ViewBundle
from unified_lift.metrics.base import ColorCorrect
from unified_lift.metrics.coverage import coverage
from unified_lift.metrics.neighbour_consistency import neighbour_consistency
from unified_lift.metrics.panoptic import largest_area_background
from unified_lift.model.render import render
from unified_lift.modelfolder.inference import TrainedScene, render_likely_ids, render_view
from unified_lift.modelfolder.outputs import NO_OBJECT
from unified_lift.ops.overlaps import Overlaps, overlaps_of
from unified_lift.ops.resample import nearest
from unified_lift.progress import Bar
from unified_lift.types import Scene, View

ReferenceImage = Literal["dataset", "render"]
AS_TRAINED = "as trained"  # the method's own clustering, where it is none of the candidates


@dataclass(frozen=True, kw_only=True)
class Result(ProtocolResult):
    """Scores of a protocol, which are absent without ground truth or objects, means of those of views, and counts."""

    protocol: Protocol
    ground_truth: GroundTruth


def evaluate(
    model: TrainedScene,
    scene: Scene,
    protocol: Protocol | str = "auto",
    *,
    renderings: Callable[[Sequence[View]], Iterable[Rendering]] | None = None,
    grounding: Grounding | None = None,
    reference_image: ReferenceImage = "dataset",
    color_correct: ColorCorrect | Literal["auto"] = "auto",
) -> Result:
    """Return the scores of a trained scene on its held-out views (`scene`) by a protocol, `auto`: its dataset's own.

    `renderings` gives those of several views, such as stored pictures; None = renders them. `grounding` finds the
    prompts of a protocol in the photo or the rendering, as `reference_image` says. `color_correct` adds image scores
    after the colours are fitted; `auto`: affine for a scene that was trained with exposures of photos, else none.
    A UserError: no such protocol, no view is held out, the scene was edited after training, there is no ground truth
    for a protocol that was asked for, no prompt for `grounding`, or pictures and annotations differ in shape.
    """
    renderings = renderings or (lambda views: (rendering_of(model, view.camera) for view in views))
    chosen = protocol if isinstance(protocol, Protocol) else protocol_named(protocol, model.settings.data)
    views = {view.name: view for view in scene.test}
    if model.is_edited:
        fix = "so photos and annotations do not show it; score the model it was made from"
        raise UserError(f"{model.path}: this scene was edited, {fix}")
    if not views:
        raise UserError(f"{model.path}: no view was held out, nothing to score on; train with train.py ... --eval")
    if grounding is not None and chosen.ground_truth != "prompt_masks":
        raise UserError(f"--grounding: protocol {chosen.name} has no prompts; leave it out or choose lerf_mask")
    ground_truth = load_ground_truth(chosen, model.settings.data, list(views)) if model.is_lifted else GroundTruth()
    if protocol != "auto" and model.is_lifted and not ground_truth:
        lacking = f"{scene.name} has no {chosen.ground_truth}"
        raise UserError(f"--protocol {chosen.name}: {lacking}; leave it out or add them")
    if color_correct == "auto":
        color_correct = "none" if model.settings.geometry.exposure == "none" else "affine"
    per_view: dict[str, dict[str, float]] = {}
    object_ids = {}
    for view, rendering in zip(scene.test, renderings(scene.test), strict=True):
        if rendering[1] is not None:
            object_ids[view.name] = rendering[1]
        for name, value in _scores_of(model, view, rendering, ground_truth, color_correct).items():
            per_view.setdefault(name, {})[view.name] = value
    if object_ids and not ground_truth:
        per_view |= _without_ground_truth(model, scene, object_ids)
    scores = {name: float(np.mean(list(values.values()))) for name, values in per_view.items()}
    scores["num_gaussians"] = len(model)
    if model.is_lifted:
        scores["num_objects_3d"] = len(model.objects)

    def find_prompts(name: str, prompts: Sequence[str]) -> TextMasks:
        assert grounding is not None
        view = views[name]
        image = view.image.numpy() if reference_image == "dataset" else next(iter(renderings([view])))[0]
        found = grounding(image, prompts)
        for prompt, mask in found.masks.items():
            _require_same_aspect(f"--grounding: the mask of {prompt}", mask, image, name)
        return found._replace(facts={**found.facts, "reference_image": reference_image})

    objects = ProtocolResult()
    if ground_truth:
        find = find_prompts if grounding is not None else None
        objects = score_objects(model, scene, chosen, ground_truth, object_ids, find_prompts=find)
    objects = replace(objects, scores=objects.scores | scores, per_view=per_view | objects.per_view)
    return Result(**vars(objects), protocol=chosen, ground_truth=ground_truth)


def _scores_of(
    model: TrainedScene, view: View, rendering: Rendering, ground_truth: GroundTruth, color_correct: ColorCorrect
) -> dict[str, float]:
    """Return the metrics of a view that apply."""
    bundle = ViewBundle(
        view=view,
        image=torch.from_numpy(rendering[0]) / 255,
        object_ids=rendering[1],
        annotation=ground_truth.annotations.get(view.name),
        depth=lambda: render_view(model, view.camera).depth,
        color_correct=color_correct,
    )
    found = {name: metric(bundle) for name, metric in VIEW_METRICS.items()}  # equal images have no finite PSNR
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def _without_ground_truth(
    model: TrainedScene, scene: Scene, object_ids: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Return the scores that rendered ids have among one another and with the masks of their views: name -> view."""
    found = {"neighbour_consistency": _consistency(model, scene, object_ids)}
    no_object = next((key for key, name in model.names.items() if name == NO_OBJECT), -1)
    if no_object < 0 and scene.zero_id == "segment":  # masks leave out the background, which is then the largest object
        no_object = largest_area_background([*object_ids.values()])
    for view in scene.test:
        if view.name in object_ids and view.segments is not None:
            valid = ... if view.valid is None else view.valid.cpu().numpy()
            ids, masks = object_ids[view.name][valid], view.segments.cpu().numpy()[valid]
            for name, value in coverage(ids, masks, no_object=no_object).items():
                found.setdefault(name, {})[view.name] = value
    return {name: values for name, values in found.items() if values}


def _consistency(model: TrainedScene, scene: Scene, object_ids: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return `neighbour_consistency` of each held-out view with the nearest other one, by name."""
    views = [view for view in scene.test if view.name in object_ids]
    places, found = np.stack([view.camera.position for view in views]), {}
    depths = [render_view(model, view.camera).depth.double().numpy() * model.frame.scale for view in views]
    for index, view in enumerate(views if len(views) > 1 else ()):
        distance = np.linalg.norm(places - places[index], axis=1)
        other = int(np.where(np.arange(len(views)) == index, np.inf, distance).argmin())
        pair = views[index], views[other]
        value = neighbour_consistency(
            (object_ids[pair[0].name], object_ids[pair[1].name]),
            (depths[index], depths[other]),
            (pair[0].camera, pair[1].camera),
        )
        if value is not None:
            found[view.name] = value
    return found


def protocol_named(name: str, data: DataSettings) -> Protocol:
    """Return the protocol of a name, a UserError if there is none; `auto`: the one that the dataset's reader names."""
    known = ", ".join(PROTOCOLS)
    if name not in ("auto", *PROTOCOLS):
        raise UserError(f"--protocol {name}: there are auto, {known}")
    if name == "auto":
        reader = detect_reader(data)
        if (name := reader.protocol) not in PROTOCOLS:
            problem = f"reader {reader.name} names {name}, but there are {known}"
            raise UserError(f"--protocol auto: {problem}; choose one of these")
    return PROTOCOLS[name]


def load_ground_truth(protocol: Protocol, data: DataSettings, names: Sequence[str]) -> GroundTruth:
    """Return what the protocol compares with, of the named views; empty where the dataset has none."""
    if protocol.ground_truth == "annotations":
        return GroundTruth(annotations=load_annotations(data, names))
    return GroundTruth(prompt_masks=load_prompt_masks(data, names))


def score_objects(
    model: TrainedScene,
    scene: Scene,
    protocol: Protocol,
    ground_truth: GroundTruth,
    object_ids: Mapping[str, np.ndarray],
    *,
    find_prompts: Callable[[str, Sequence[str]], TextMasks] | None = None,
) -> ProtocolResult:
    """Return the protocol's scores of rendered ids, [H, W] by held-out view; a UserError: other aspects than annotated.

    Ids rendered at a reduced size (-r) are compared at that of the annotations, nearest pixel, and the report says so.
    """
    cameras = {view.name: view.camera for view in scene.test}
    resized = dict(object_ids)
    for name, ids in object_ids.items():
        for mask in ground_truth.prompt_masks.get(name, {}).values():
            _require_same_aspect("annotated prompt", mask, ids, name)
        if name in ground_truth.annotations:
            _require_same_aspect("annotation", ground_truth.annotations[name], ids, name)
            resized[name] = nearest(ids, *ground_truth.annotations[name].shape)
    predictions = PredictionBundle(
        names=list(cameras),
        object_ids=resized,
        counted={view.name: view.valid.cpu().numpy() for view in scene.test if view.valid is not None},
        likely_ids=lambda name, threshold: render_likely_ids(model, cameras[name], threshold=threshold).numpy(),
        find_prompts=find_prompts,
    )
    result = protocol.score(predictions, ground_truth)
    facts = {
        "dataset": scene.dataset,
        "scene": scene.name,
        "mask_source": model.settings.data.object_path,
        "predictions_resampled_to_annotations": sum(resized[n].shape != ids.shape for n, ids in object_ids.items()),
    }
    return replace(result, report=facts | result.report)  # what a protocol itself says about resampling counts


def candidates_of(model: TrainedScene) -> dict[str, Method]:
    """Return the clusterings that the method kept; a UserError if there are none."""
    found = model.method.candidates() if model.method is not None else {}
    if not found:
        fix = "train one whose method makes several, such as --method omniseg3d_gs"
        raise UserError(f"--oracle_codebooks: this model keeps no candidates to choose from; {fix}")
    return dict(found)


@torch.no_grad()
def evaluate_candidates(model: TrainedScene, scene: Scene, result: Result, *, quiet: bool = True) -> dict[str, Any]:
    """Return the scores of every clustering that the method kept, the best of them, and the one it chose itself.

    Prompts are those of the `result` of `evaluate`. A UserError: there are no candidates, annotations or true objects.
    """
    candidates = candidates_of(model)
    if not result.ground_truth or model.method is None:
        raise UserError("--oracle_codebooks: there are no objects or no annotations to choose by; leave it out")
    methods = {AS_TRAINED: model.method} | candidates
    ids: dict[str, dict[str, np.ndarray]] = {name: {} for name in methods}
    for view in Bar(scene.test, desc="candidates", disable=quiet):
        features = render(model.gaussians, view.camera, with_features=True).features
        for name, method in methods.items():
            ids[name][view.name] = method.segment(features).object_ids.cpu().numpy().astype(np.int32)
    chosen = next((name for name in candidates if _same_partition(ids[name], ids[AS_TRAINED])), AS_TRAINED)
    text = result.text
    find = (lambda *_: text) if text is not None else None
    scores = {}
    for name in [*candidates] if chosen in candidates else [*methods]:
        one = replace(model, method=methods[name])
        found = score_objects(one, scene, result.protocol, result.ground_truth, ids[name], find_prompts=find)
        scores[name] = found.scores
    headline = next(filter(None, map(result.protocol.headline_of, scores.values())), None)
    if headline is None:
        raise UserError("--oracle_codebooks: the annotations show no object, so no candidate is better than another")
    return {
        "protocol": result.protocol.name,
        "iteration": model.iteration,
        "headline": headline,
        "candidates": scores,
        "best": max(scores, key=lambda name: scores[name].get(headline, -1.0)),
        "chosen": chosen,
        "warning": "`best` was chosen with the annotations and is no fair result; `chosen` was made without them",
    }


def _same_partition(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    """Return whether two sets of label maps show the same segments, whatever their ids."""
    both = Overlaps.merged([overlaps_of(ids, second[name]) for name, ids in first.items()])
    return len(both.pred_ids) == len(both.true_ids) == len(both.shared)


def _require_same_aspect(what: str, mask: np.ndarray, picture: np.ndarray, view: str) -> None:
    sizes = mask.shape[1::-1], picture.shape[1::-1]
    if not same_aspect(*sizes):
        given, expected = (f"{width}x{height}" for width, height in sizes)
        raise UserError(f"{what} is {given} but view {view} is {expected}, another shape; make it from this view")
