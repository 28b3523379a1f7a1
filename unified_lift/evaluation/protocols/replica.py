"""Replica: mIoU and F1 under the best one-to-one matching over the scene (Tables 2 and 4 of the paper).

No scorer was published. `scene` is our reading and the headline; the nearest public relative, Gaga's scorer
(`viewmean`), and two more readings are given beside it.
"""

from unified_lift.evaluation.protocols.base import GroundTruth, PredictionBundle, Protocol, ProtocolResult, aligned
from unified_lift.metrics.matched import MIN_HIT_IOU


def score(predictions: PredictionBundle, ground_truth: GroundTruth) -> ProtocolResult:
    """Return mIoU and F1 of a scene at the annotations' own size, and the same under the other profiles.

    Every annotated id counts, however small, and so does every predicted id that wins a pixel in an annotated view;
    there is no background rule, and true id 0 is not an object. A view without prediction counts as the predicted id
    with the largest area, which adds no id, and is listed; a view without annotation is left out and listed. Errors as
    in `aligned`.
    """
    views = aligned(predictions, ground_truth)
    scores: dict[str, float] = {}
    for profile, matched in views.matched.items():
        suffix = "" if profile == "scene" else "_" + profile.removeprefix("scene_")
        scores |= {f"mIoU{suffix}": matched.miou, f"F1{suffix}": matched.f1}
    scores["num_objects_true"] = 0
    if scene := views.matched.get("scene"):
        scores |= {"num_objects_true": scene.num_true, "num_objects_pred": scene.num_pred}
        scores["num_objects_found"] = scene.tp
    thresholds = {"hit_iou": MIN_HIT_IOU}
    return views.result("replica", scores, resampling="none", profile="scene", thresholds=thresholds)


PROTOCOL = Protocol(name="replica", ground_truth="annotations", headline=("mIoU",), score=score)
