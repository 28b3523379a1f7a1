"""The protocol of any annotated scene: PQ over the scene, mIoU and F1, at the annotations' own size."""

from __future__ import annotations

from dataclasses import asdict

from unified_lift.evaluation.protocols.base import (
    NO_TRUE_OBJECT,
    AlignedViews,
    GroundTruth,
    PredictionBundle,
    Protocol,
    ProtocolResult,
    aligned,
)
from unified_lift.metrics.matched import MIN_HIT_IOU
from unified_lift.metrics.panoptic import MIN_CLASS_SHARE, MIN_MATCH_IOU, pq_scene

_CLASS_NAMES = ("background", "object")
BACKGROUND, OBJECT = 0, 1


def score(predictions: PredictionBundle, ground_truth: GroundTruth) -> ProtocolResult:
    """Return the scores of a model on the held-out views of a scene.

    The predicted background is the id with the largest area over all views (Section 4.1 of the paper); all others
    are objects. A view without prediction counts as all background and is listed; a view without annotation is left
    out and listed.

    Raises:
        ValueError: No annotated view, or a prediction of another size than its annotation.
    """
    return panoptic_result("generic", aligned(predictions, ground_truth), resampling="none")


def panoptic_result(protocol: str, views: AlignedViews, *, resampling: str) -> ProtocolResult:
    """Return all scores of aligned views under the name of a protocol."""
    pred, true = views.pixels
    panoptic = pq_scene(pred != views.background, pred, true != 0, true, things=[OBJECT], stuff=[BACKGROUND])
    scene: dict[str, float] = {"PQ_scene": panoptic.pq, "SQ_scene": panoptic.sq, "RQ_scene": panoptic.rq}
    for key, label in (("PQ_things", OBJECT), ("PQ_stuff", BACKGROUND)):
        if label in panoptic.per_class:
            scene[key] = panoptic.per_class[label].pq
    warnings = []
    if OBJECT in panoptic.dropped:
        warnings.append(
            f"objects fill less than {100 * MIN_CLASS_SHARE} % of the pixels in prediction or annotation: the rule of "
            "the benchmark drops their class, and PQ_scene is that of the background alone"
        )
    if BACKGROUND in panoptic.dropped:
        warnings.append("the background fills too few pixels: PQ_scene is that of the objects alone")
    warnings += views.warnings()
    if views.matched is not None:
        scene |= {"mIoU": views.matched.miou, "F1": views.matched.f1}
    else:
        warnings.append(NO_TRUE_OBJECT)
    pred_ids, true_ids, _ = views.table
    scene["num_objects_true"] = int((true_ids != 0).sum())
    scene["num_objects_pred"] = int((pred_ids != views.background).sum())
    report = {
        "protocol": protocol,
        **views.facts(),
        "resampling": resampling,
        "background_rule": "largest area over all views of the split",
        "background_id": views.background,
        "thresholds": {"match_iou": MIN_MATCH_IOU, "hit_iou": MIN_HIT_IOU, "min_class_share": MIN_CLASS_SHARE},
        "classes": {_CLASS_NAMES[label]: asdict(scores) for label, scores in panoptic.per_class.items()},
        "dropped_classes": [_CLASS_NAMES[label] for label in panoptic.dropped],
        "warnings": warnings,
        **views.matching_report(),
    }
    return ProtocolResult(scores=scene, per_view=views.per_view(), report=report)


PROTOCOL = Protocol(name="generic", ground_truth="annotations", headline=("PQ_scene",), score=score)
