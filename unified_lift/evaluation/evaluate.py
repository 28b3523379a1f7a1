"""Scoring a trained scene. `evaluate` returns every number of its held-out views and writes nothing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from unified_lift.data import detect_reader, load_annotations, load_prompt_masks
from unified_lift.data.masks import same_aspect
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.evaluation.grounding import Grounding, TextMasks
from unified_lift.evaluation.protocols import PROTOCOLS, GroundTruth, PredictionBundle, Protocol, ProtocolResult
from unified_lift.metrics import VIEW_METRICS, ViewBundle
from unified_lift.metrics.image import quantize_uint8
from unified_lift.modelfolder.inference import TrainedScene, render_likely_ids, render_view, segment_view
from unified_lift.ops.overlaps import overlap_table
from unified_lift.ops.resample import nearest
from unified_lift.types import Scene, View

ReferenceImage = Literal["dataset", "render"]
FindPrompts = Callable[[str, Sequence[str]], TextMasks]
PerView = dict[str, dict[str, float]]
"""Metric -> view name -> value, as 3DGS writes per_view.json."""
AS_TRAINED = "as trained"
"""What the method's own clustering is called where it is none of the candidates."""
ORACLE_WARNING = "`best` was chosen with the annotations and is no fair result; `chosen` was made without them"


class Rendering(NamedTuple):
    """A view as stored pictures hold it: colour uint8 [H, W, 3]; object ids int32 [H, W], None without a lift."""

    image: np.ndarray
    object_ids: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of a trained scene.

    Attributes:
        scores: Of the scene, by name: those of the protocol, then means over views of the metrics of views.
        per_view: Metric -> view -> value.
        protocol: By which objects are scored.
        ground_truth: What it compared with; empty where the model knows no objects or nothing is annotated.
        objects: What it returned: its scores, report and masks of prompts; None where it had nothing to score.
    """

    scores: dict[str, float]
    per_view: PerView
    protocol: Protocol
    ground_truth: GroundTruth
    objects: ProtocolResult | None

    @property
    def report(self) -> dict[str, Any]:
        """Return how the scores of objects came about, ready for JSON; empty without them."""
        return self.objects.report if self.objects is not None else {}

    @property
    def warnings(self) -> list[str]:
        """Return what the reader of the scores must know."""
        return self.report.get("warnings", [])


def evaluate(
    model: TrainedScene,
    scene: Scene,
    protocol: Protocol | Literal["auto"] = "auto",
    *,
    renderings: Callable[[Sequence[View]], Iterable[Rendering]] | None = None,
    grounding: Grounding | None = None,
    reference_image: ReferenceImage = "dataset",
) -> Result:
    """Return the scores of a trained scene on its held-out views.

    Args:
        model: As `load_model` returns it.
        scene: The views it was trained on, split as then.
        protocol: How objects are scored; `auto`: as the dataset's reader says.
        renderings: Gives the rendering of each of several views, such as stored pictures; None = renders them.
        grounding: Finds text prompts in an image, where the protocol has some.
        reference_image: In which image: the dataset's photo or the model's rendering.
    Raises:
        UserError: No view is held out, the scene was edited after training, there is no ground truth for a protocol
            that was asked for, no prompt for `grounding`, or pictures and annotations differ in shape.
    """
    if model.is_edited:
        raise UserError(
            f"{model.path}: this scene was edited, so photos and annotations do not show it; score the model it was "
            "made from"
        )
    if not scene.test:
        raise UserError(f"{model.path}: no view was held out, nothing to score on; train with train.py ... --eval")
    asked = protocol != "auto"
    protocol = protocol if isinstance(protocol, Protocol) else protocol_of(model.settings.data)
    if grounding is not None and protocol.ground_truth != "prompt_masks":
        raise UserError(f"--grounding: protocol {protocol.name} has no prompts; leave it out or choose lerf_mask")
    views = {view.name: view for view in scene.test}
    ground_truth = load_ground_truth(protocol, model.settings.data, list(views)) if model.is_lifted else GroundTruth()
    if asked and model.is_lifted and not ground_truth:
        raise UserError(
            f"--protocol {protocol.name}: {scene.name} has no {protocol.ground_truth}; leave it out or add them"
        )
    renderings = renderings or functools.partial(rendered, model)
    per_view: PerView = {metric.name: {} for metric in VIEW_METRICS}
    object_ids = {}
    for view, rendering in zip(scene.test, renderings(scene.test), strict=True):
        object_ids[view.name] = rendering.object_ids
        bundle = ViewBundle(
            view=view,
            image=torch.from_numpy(rendering.image) / 255,
            object_ids=rendering.object_ids,
            annotation=ground_truth.annotations.get(view.name),
            depth=lambda view=view: render_view(model, view.camera).depth,
        )
        for metric in VIEW_METRICS:
            value = metric.function(bundle)
            if value is not None and math.isfinite(value):  # equal images have no finite PSNR
                per_view[metric.name][view.name] = value

    def find_prompts(name: str, prompts: Sequence[str]) -> TextMasks:
        view = views[name]
        image = view.image.numpy() if reference_image == "dataset" else next(iter(renderings([view]))).image
        found = grounding.find(image, prompts)
        for prompt, mask in found.masks.items():
            _require_same_aspect(f"--grounding: the mask of {prompt}", mask, image, name)
        return found._replace(facts={**found.facts, "reference_image": reference_image})

    means = {metric: float(np.mean(list(values.values()))) for metric, values in per_view.items() if values}
    objects = None
    if ground_truth:
        find = find_prompts if grounding is not None else None
        objects = score_objects(model, scene, protocol, ground_truth, object_ids, find_prompts=find)
        for name, scores in objects.per_view.items():
            for metric, value in scores.items():
                per_view.setdefault(metric, {})[name] = value
    counts = {"num_gaussians": len(model)} | ({"num_objects_3d": len(model.objects)} if model.is_lifted else {})
    return Result(
        scores=(objects.scene if objects is not None else {}) | means | counts,
        per_view=per_view,
        protocol=protocol,
        ground_truth=ground_truth,
        objects=objects,
    )


def protocol_of(data: DataSettings) -> Protocol:
    """Return the protocol that the dataset's reader names.

    Raises:
        UserError: There is none of that name.
    """
    reader = detect_reader(data)
    if reader.protocol not in PROTOCOLS:
        raise UserError(
            f"--protocol auto: reader {reader.name} names {reader.protocol}, but there are {', '.join(PROTOCOLS)}; "
            "choose one of these"
        )
    return PROTOCOLS[reader.protocol]


def load_ground_truth(protocol: Protocol, data: DataSettings, names: Sequence[str]) -> GroundTruth:
    """Return what the protocol compares with, of the named views; empty where the dataset has none."""
    load = load_annotations if protocol.ground_truth == "annotations" else load_prompt_masks
    return GroundTruth(**{protocol.ground_truth: load(data, names)})


def rendered(model: TrainedScene, views: Iterable[View]) -> Iterator[Rendering]:
    """Yield what the model shows in each view."""
    for view in views:
        shown = render_view(model, view.camera)
        ids = None if shown.object_ids is None else shown.object_ids.numpy().astype(np.int32)
        yield Rendering(quantize_uint8(shown.image).numpy(), ids)


def score_objects(
    model: TrainedScene,
    scene: Scene,
    protocol: Protocol,
    ground_truth: GroundTruth,
    object_ids: Mapping[str, np.ndarray],
    *,
    find_prompts: FindPrompts | None = None,
) -> ProtocolResult:
    """Return the protocol's scores of rendered ids, [H, W] by held-out view.

    Ids rendered at a reduced size (-r) are compared at the size of the annotations, nearest pixel, and the report
    says so.

    Raises:
        UserError: A view was annotated in another shape than it was rendered.
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


def require_candidates(model: TrainedScene) -> None:
    """Raise a UserError unless the method kept several clusterings."""
    if model.method is None or not model.method.candidates():
        raise UserError(
            "--oracle_codebooks: this model keeps no candidates to choose from; train one whose method makes several, "
            "such as --method omniseg3d_gs"
        )


def evaluate_candidates(model: TrainedScene, scene: Scene, result: Result, *, quiet: bool = True) -> dict[str, Any]:
    """Return the scores of every clustering that the method kept, the best of them, and the one it chose itself.

    Args:
        model: Of a method with candidates.
        scene: Its views.
        result: What `evaluate` returned for the model; prompts that were found by words are not sought again.
        quiet: No progress bar.
    Raises:
        UserError: There are no candidates or no annotations, or the annotations show no object.
    """
    require_candidates(model)
    if result.objects is None:
        raise UserError("--oracle_codebooks: there are no objects or no annotations to choose by; leave it out")
    methods = model.method.candidates()
    ids: dict[str, dict[str, np.ndarray]] = {name: {} for name in (AS_TRAINED, *methods)}
    for view in tqdm(scene.test, desc="candidates", disable=quiet, dynamic_ncols=True):
        for name, seen in segment_view(model, view.camera, {AS_TRAINED: model.method, **methods}).items():
            ids[name][view.name] = seen.numpy().astype(np.int32)
    chosen = next((name for name in methods if _same_partition(ids[name], ids[AS_TRAINED])), AS_TRAINED)
    compared = methods if chosen in methods else {AS_TRAINED: model.method, **methods}
    text = result.objects.text
    find = None if text is None else lambda name, prompts: text
    scores = {
        name: score_objects(
            replace(model, method=method), scene, result.protocol, result.ground_truth, ids[name], find_prompts=find
        ).scene
        for name, method in compared.items()
    }
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
        "warning": ORACLE_WARNING,
    }


def _same_partition(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    """Return whether two sets of label maps show the same segments, whatever their ids."""
    flat = [np.concatenate([ids.reshape(-1) for ids in maps.values()]) for maps in (first, second)]
    rows, columns, counts = overlap_table(*flat)
    return len(rows) == len(columns) == np.count_nonzero(counts)


def _require_same_aspect(what: str, mask: np.ndarray, picture: np.ndarray, view: str) -> None:
    sizes = [(shape[1], shape[0]) for shape in (mask.shape, picture.shape)]
    if not same_aspect(*sizes):
        given, expected = (f"{width}x{height}" for width, height in sizes)
        raise UserError(f"{what} is {given} but view {view} is {expected}, another shape; make it from this view")
