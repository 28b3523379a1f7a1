"""Benchmarks: which pixels are compared, at which size, under which background rule. One function each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from unified_lift.metrics.masks import overlap_table
from unified_lift.metrics.matched import MIN_HIT_IOU, MatchedScores, iou_from_counts, match_matrix, matched_scores
from unified_lift.metrics.panoptic import (
    MIN_CLASS_SHARE,
    MIN_MATCH_IOU,
    PanopticScores,
    largest_area_background,
    pq_scene,
)
from unified_lift.ops.resample import nearest

# The size at which the Messy Rooms scorer compares label maps, whatever their own [Contrastive Lift].
MESSY_ROOMS_SIZE = 512
# Ids below this many pixels in the scene are left out of the second F1, which stray pixels cannot move.
MIN_SEGMENT_PIXELS = 100
BACKGROUND, OBJECT = 0, 1

Labels = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """Scores of one model on one scene; fractions in [0, 1]. A score that does not apply is absent.

    Attributes:
        scene: PQ_scene, SQ_scene, RQ_scene, PQ_things, PQ_stuff, mIoU, F1, num_objects_true, num_objects_pred.
        per_view: By view: mIoU over the true objects it shows (partners from the matching over the scene), their
            number and their share of the pixels.
        report: How the scores came about, ready for JSON: views, missing files, thresholds, sizes, background id,
            counts, the score of every object and of every class, other matching profiles, warnings.
    """

    scene: dict[str, float]
    per_view: dict[str, dict[str, float]]
    report: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class _Views:
    """Aligned label maps of the views that can be scored, and what had to be decided about them."""

    names: tuple[str, ...]
    preds: tuple[np.ndarray, ...]
    trues: tuple[np.ndarray, ...]
    background: int
    without_annotation: tuple[str, ...]
    without_prediction: tuple[str, ...]


def generic(predictions: Labels, annotations: Labels, names: Sequence[str]) -> ProtocolResult:
    """Return the scores at the annotations' own size. Arguments as in `evaluate`."""
    return _result("generic", _collect(predictions, annotations, names), resampling="none")


def messy_rooms(predictions: Labels, annotations: Labels, names: Sequence[str]) -> ProtocolResult:
    """Return the scores as Contrastive Lift takes them: every label map resampled to a 512 x 512 square first.

    Arguments as in `evaluate`. The background is found before, at the rendered size.
    """
    views = _collect(predictions, annotations, names)
    square = _Views(
        names=views.names,
        preds=tuple(nearest(view, MESSY_ROOMS_SIZE, MESSY_ROOMS_SIZE) for view in views.preds),
        trues=tuple(nearest(view, MESSY_ROOMS_SIZE, MESSY_ROOMS_SIZE) for view in views.trues),
        background=views.background,
        without_annotation=views.without_annotation,
        without_prediction=views.without_prediction,
    )
    return _result("messy_rooms", square, resampling="nearest, centre rule")


Protocol = Callable[[Labels, Labels, Sequence[str]], ProtocolResult]
PROTOCOLS: dict[str, Protocol] = {"generic": generic, "messy_rooms": messy_rooms}


def evaluate(protocol: str, predictions: Labels, annotations: Labels, names: Sequence[str]) -> ProtocolResult:
    """Return the scores of a model on the held-out views of a scene.

    The predicted background is the id with the largest area over all views (Section 4.1 of the paper); all others
    are objects. A view without prediction counts as all background and is listed; a view without annotation is left
    out and listed.

    Args:
        protocol: A name in `PROTOCOLS`.
        predictions: Object ids by view name, int32 [H, W].
        annotations: True ids by view name, 0 = not an object, int32 [H, W].
        names: The views of the split, all of them.
    Raises:
        ValueError: An unknown protocol, no annotated view, or a prediction of another size than its annotation.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol](predictions, annotations, names)


def _collect(predictions: Labels, annotations: Labels, names: Sequence[str]) -> _Views:
    """Return aligned label maps of the annotated views, missing predictions filled with background."""
    scored = tuple(name for name in names if name in annotations)
    if not scored:
        raise ValueError(f"none of the {len(names)} views has an annotation, so there is nothing to score")
    for name in scored:
        if name in predictions and predictions[name].shape != annotations[name].shape:
            raise ValueError(
                f"view {name}: prediction {predictions[name].shape} and annotation {annotations[name].shape} differ in "
                "size; render at the size of the annotations"
            )
    # The rule speaks of all held-out views, annotated or not.
    present = [np.asarray(predictions[name]) for name in names if name in predictions]
    background = largest_area_background(present) if present else 0
    return _Views(
        names=scored,
        preds=tuple(
            np.asarray(predictions[name])
            if name in predictions
            else np.full(annotations[name].shape, background, dtype=np.int32)
            for name in scored
        ),
        trues=tuple(np.asarray(annotations[name]) for name in scored),
        background=background,
        without_annotation=tuple(name for name in names if name not in annotations),
        without_prediction=tuple(name for name in scored if name not in predictions),
    )


def _result(protocol: str, views: _Views, *, resampling: str) -> ProtocolResult:
    """Return all scores of aligned views."""
    pred = np.concatenate([view.reshape(-1) for view in views.preds])
    true = np.concatenate([view.reshape(-1) for view in views.trues])
    panoptic = pq_scene(pred != views.background, pred, true != 0, true, things=[OBJECT], stuff=[BACKGROUND])
    warnings = _warnings(panoptic, views)
    pred_ids, true_ids, counts = overlap_table(pred, true)
    scene: dict[str, float] = {"PQ_scene": panoptic.pq, "SQ_scene": panoptic.sq, "RQ_scene": panoptic.rq}
    for key, label in (("PQ_things", OBJECT), ("PQ_stuff", BACKGROUND)):
        if label in panoptic.per_class:
            scene[key] = panoptic.per_class[label].pq
    matched = None
    if (true_ids != 0).any():
        matched = matched_scores(views.preds, views.trues, profile="scene")
        scene |= {"mIoU": matched.miou, "F1": matched.f1}
    else:
        warnings.append("no true object occurs in the scored views, so mIoU and F1 do not apply")
    scene["num_objects_true"] = int((true_ids != 0).sum())
    scene["num_objects_pred"] = int((pred_ids != views.background).sum())
    report = _report(protocol, views, panoptic, resampling) | {"warnings": warnings}
    if matched is not None:
        report["matching"] = _profiles(views, matched, counts, true_ids)
        report["objects"] = _objects(matched, true_ids, counts)
    return ProtocolResult(scene=scene, per_view=_per_view(views, matched), report=report)


def _report(protocol: str, views: _Views, panoptic: PanopticScores, resampling: str) -> dict[str, object]:
    """Return every choice behind the scores, and the classes one by one."""
    label_names = {BACKGROUND: "background", OBJECT: "object"}
    return {
        "protocol": protocol,
        "views": list(views.names),
        "missing_annotations": list(views.without_annotation),
        "missing_predictions": list(views.without_prediction),
        "num_missing_predictions": len(views.without_prediction),
        "resolution": sorted({f"{view.shape[1]}x{view.shape[0]}" for view in views.trues}),
        "resampling": resampling,
        "background_rule": "largest area over all views of the split",
        "background_id": views.background,
        "thresholds": {"match_iou": MIN_MATCH_IOU, "hit_iou": MIN_HIT_IOU, "min_class_share": MIN_CLASS_SHARE},
        "classes": {label_names[label]: asdict(scores) for label, scores in panoptic.per_class.items()},
        "dropped_classes": [label_names[label] for label in panoptic.dropped],
    }


def _warnings(panoptic: PanopticScores, views: _Views) -> list[str]:
    found = []
    if OBJECT in panoptic.dropped:
        found.append(
            f"objects fill less than {100 * MIN_CLASS_SHARE} % of the pixels in prediction or annotation: the rule of "
            "the benchmark drops their class, and PQ_scene is that of the background alone"
        )
    if BACKGROUND in panoptic.dropped:
        found.append("the background fills too few pixels: PQ_scene is that of the objects alone")
    if views.without_prediction:
        found.append(f"{len(views.without_prediction)} views have no prediction and count as all background")
    if views.without_annotation:
        found.append(f"{len(views.without_annotation)} views have no annotation and were left out")
    return found


def _profiles(
    views: _Views, matched: MatchedScores, counts: np.ndarray, true_ids: np.ndarray
) -> dict[str, dict[str, float]]:
    """Return the scores of every matching profile, and of `scene` without ids of a few stray pixels."""
    profiles = {"scene": matched}
    for name in ("scene_masked", "viewmean"):
        profiles[name] = matched_scores(views.preds, views.trues, profile=name)
    rows = counts.sum(axis=1) >= MIN_SEGMENT_PIXELS
    columns = (counts.sum(axis=0) >= MIN_SEGMENT_PIXELS) & (true_ids != 0)
    if columns.any():
        # Areas stay those of the whole scene: small ids lose their row, not their pixels.
        profiles[f"scene_from_{MIN_SEGMENT_PIXELS}_px"] = match_matrix(iou_from_counts(counts)[rows][:, columns].T)
    keys = ("miou", "f1", "precision", "recall", "tp", "num_pred", "num_true")
    return {name: {key: getattr(scores, key) for key in keys} for name, scores in profiles.items()}


def _objects(matched: MatchedScores, true_ids: np.ndarray, counts: np.ndarray) -> list[dict[str, float | None]]:
    """Return every true object with its area in pixels, its partner (None without) and their IoU."""
    partner = {pair[0]: (pair[1], iou) for pair, iou in zip(matched.pairs, matched.pair_iou, strict=True)}
    areas = counts.sum(axis=0)
    objects = []
    for true_id, area in zip(true_ids.tolist(), areas.tolist(), strict=True):
        if true_id != 0:
            pred_id, iou = partner.get(true_id, (None, 0.0))
            objects.append({"true_id": true_id, "pred_id": pred_id, "iou": iou, "area": area})
    return objects


def _per_view(views: _Views, matched: MatchedScores | None) -> dict[str, dict[str, float]]:
    """Return the scores of single views: IoU of each true object with its partner of the scene, 0 without one."""
    partner = dict(matched.pairs) if matched is not None else {}
    result = {}
    for name, pred, true in zip(views.names, views.preds, views.trues, strict=True):
        pred_ids, true_ids, counts = overlap_table(pred, true)
        iou = iou_from_counts(counts)
        row_of = {int(pred_id): row for row, pred_id in enumerate(pred_ids)}
        values = []
        for column, true_id in enumerate(true_ids.tolist()):
            if true_id != 0:
                row = row_of.get(partner.get(true_id))
                values.append(float(iou[row, column]) if row is not None else 0.0)
        scores: dict[str, float] = {"num_objects": len(values), "object_share": float(np.mean(true != 0))}
        if values:
            scores["mIoU"] = float(np.mean(values))
        result[name] = scores
    return result
