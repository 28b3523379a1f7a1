"""The protocol of any annotated scene: PQ over the scene, mIoU and F1, at the annotations' own size."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from unified_lift.evaluation.protocols.base import (
    AlignedViews,
    Protocol,
    ProtocolResult,
    Subject,
    aligned,
    matching_profiles,
    object_list,
    scene_table,
    scores_of_views,
    view_facts,
    view_warnings,
)
from unified_lift.metrics.matched import MIN_HIT_IOU, matched_scores
from unified_lift.metrics.panoptic import MIN_CLASS_SHARE, MIN_MATCH_IOU, PanopticScores, pq_scene

BACKGROUND, OBJECT = 0, 1
_CLASS_NAMES = {BACKGROUND: "background", OBJECT: "object"}


def score(subject: Subject) -> ProtocolResult:
    """Return the scores of a model on the held-out views of a scene.

    The predicted background is the id with the largest area over all views (Section 4.1 of the paper); all others
    are objects. A view without prediction counts as all background and is listed; a view without annotation is left
    out and listed.

    Raises:
        ValueError: No annotated view, or a prediction of another size than its annotation.
    """
    return panoptic_result("generic", aligned(subject), resampling="none")


def panoptic_result(protocol: str, views: AlignedViews, *, resampling: str) -> ProtocolResult:
    """Return all scores of aligned views under the name of a protocol."""
    pred = np.concatenate([view.reshape(-1) for view in views.preds])
    true = np.concatenate([view.reshape(-1) for view in views.trues])
    panoptic = pq_scene(pred != views.background, pred, true != 0, true, things=[OBJECT], stuff=[BACKGROUND])
    warnings = _warnings(panoptic, views)
    pred_ids, true_ids, _ = scene_table(views)
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
        report["matching"] = matching_profiles(views, matched)
        report["objects"] = object_list(views, matched)
    return ProtocolResult(scene=scene, per_view=scores_of_views(views, matched), report=report)


def _report(protocol: str, views: AlignedViews, panoptic: PanopticScores, resampling: str) -> dict[str, object]:
    """Return every choice behind the scores, and the classes one by one."""
    return {
        "protocol": protocol,
        **view_facts(views),
        "resampling": resampling,
        "background_rule": "largest area over all views of the split",
        "background_id": views.background,
        "thresholds": {"match_iou": MIN_MATCH_IOU, "hit_iou": MIN_HIT_IOU, "min_class_share": MIN_CLASS_SHARE},
        "classes": {_CLASS_NAMES[label]: asdict(scores) for label, scores in panoptic.per_class.items()},
        "dropped_classes": [_CLASS_NAMES[label] for label in panoptic.dropped],
    }


def _warnings(panoptic: PanopticScores, views: AlignedViews) -> list[str]:
    found = []
    if OBJECT in panoptic.dropped:
        found.append(
            f"objects fill less than {100 * MIN_CLASS_SHARE} % of the pixels in prediction or annotation: the rule of "
            "the benchmark drops their class, and PQ_scene is that of the background alone"
        )
    if BACKGROUND in panoptic.dropped:
        found.append("the background fills too few pixels: PQ_scene is that of the objects alone")
    return found + view_warnings(
        without_annotation=views.without_annotation, without_prediction=views.without_prediction
    )


PROTOCOL = Protocol(name="generic", truth="annotations", headline=("PQ_scene",), score=score)
