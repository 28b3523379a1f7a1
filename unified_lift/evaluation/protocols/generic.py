"""The protocol of any annotated scene: PQ over the scene, mIoU and F1, at the annotations' own size."""

from unified_lift.evaluation.protocols.base import (
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
    scores: dict[str, float] = {"PQ_scene": panoptic.pq, "SQ_scene": panoptic.sq, "RQ_scene": panoptic.rq}
    for key, label in (("PQ_things", OBJECT), ("PQ_stuff", BACKGROUND)):
        if label in panoptic.per_class:
            scores[key] = panoptic.per_class[label].pq
    if views.matched:
        scores |= {"mIoU": views.matched["scene"].miou, "F1": views.matched["scene"].f1}
    pred_ids, true_ids, _ = views.table
    scores["num_objects_true"] = int((true_ids != 0).sum())
    scores["num_objects_pred"] = int((pred_ids != views.background).sum())
    meaning = {
        OBJECT: f"objects fill less than {100 * MIN_CLASS_SHARE} % of the pixels in prediction or annotation: the rule "
        "of the benchmark drops their class, and PQ_scene is that of the background alone",
        BACKGROUND: "the background fills too few pixels: PQ_scene is that of the objects alone",
    }
    return views.result(
        protocol,
        scores,
        resampling=resampling,
        background_rule="largest area over all views of the split",
        background_id=views.background,
        thresholds={"match_iou": MIN_MATCH_IOU, "hit_iou": MIN_HIT_IOU, "min_class_share": MIN_CLASS_SHARE},
        classes={_CLASS_NAMES[label]: vars(found) for label, found in panoptic.per_class.items()},
        dropped_classes=[_CLASS_NAMES[label] for label in panoptic.dropped],
        warnings=[meaning[label] for label in panoptic.dropped],
    )


PROTOCOL = Protocol(name="generic", ground_truth="annotations", headline=("PQ_scene",), score=score)
