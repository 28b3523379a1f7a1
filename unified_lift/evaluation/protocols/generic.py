"""The protocol of any annotated scene: PQ over the scene, mIoU and F1, at the annotations' own size."""

from unified_lift.evaluation.protocols import base
from unified_lift.evaluation.protocols.base import AlignedViews, GroundTruth, PredictionBundle, ProtocolResult
from unified_lift.metrics.matched import MIN_HIT_IOU
from unified_lift.metrics.panoptic import MIN_CLASS_SHARE, MIN_MATCH_IOU, pq_scene

BACKGROUND, OBJECT = 0, 1
_CLASS_NAMES = ("background", "object")
_DROPPED = (
    "the background fills too few pixels: PQ_scene is that of the objects alone",
    f"objects fill less than {100 * MIN_CLASS_SHARE} % of the pixels in prediction or annotation: the rule of the "
    "benchmark drops their class, and PQ_scene is that of the background alone",
)


def score(predictions: PredictionBundle, ground_truth: GroundTruth) -> ProtocolResult:
    """Return the scores of a model on the held-out views of a scene; errors as in `aligned`.

    The predicted background is the id with the largest area over all views (Section 4.1 of the paper); all others
    are objects. A view without prediction counts as all background and is listed; a view without annotation is left
    out and listed.
    """
    return panoptic_result("generic", base.aligned(predictions, ground_truth), resampling="none")


def panoptic_result(protocol: str, views: AlignedViews, *, resampling: str) -> ProtocolResult:
    """Return all scores of aligned views under the name of a protocol."""
    pred, true = views.pixels
    panoptic = pq_scene(pred != views.background, pred, true != 0, true, things=[OBJECT], stuff=[BACKGROUND])
    scores: dict[str, float] = {"PQ_scene": panoptic.pq, "SQ_scene": panoptic.sq, "RQ_scene": panoptic.rq}
    scores |= {("PQ_stuff", "PQ_things")[label]: found.pq for label, found in panoptic.per_class.items()}
    if views.matched:
        scores |= {"mIoU": views.matched["scene"].miou, "F1": views.matched["scene"].f1}
    scores["num_objects_true"] = int((views.overlaps.true_ids != 0).sum())
    scores["num_objects_pred"] = int((views.overlaps.pred_ids != views.background).sum())
    return views.result(
        protocol,
        scores,
        resampling=resampling,
        background_rule="largest area over all views of the split",
        background_id=views.background,
        thresholds={"match_iou": MIN_MATCH_IOU, "hit_iou": MIN_HIT_IOU, "min_class_share": MIN_CLASS_SHARE},
        classes={_CLASS_NAMES[label]: vars(found) for label, found in panoptic.per_class.items()},
        dropped_classes=[_CLASS_NAMES[label] for label in panoptic.dropped],
        warnings=[_DROPPED[label] for label in panoptic.dropped],
    )


PROTOCOL = base.Protocol(name="generic", ground_truth="annotations", headline=("PQ_scene",), score=score)
