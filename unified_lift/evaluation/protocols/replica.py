"""Replica: mIoU and F1 under the best one-to-one matching over the scene (Tables 2 and 4 of the paper).

No scorer was published. `scene` is our reading and the headline; the nearest public relative, Gaga's scorer
(`viewmean`), and two more readings are given beside it.
"""

from __future__ import annotations

from unified_lift.evaluation.protocols.base import (
    NO_TRUE_OBJECT,
    GroundTruth,
    PredictionBundle,
    Protocol,
    ProtocolResult,
    aligned,
)
from unified_lift.metrics.matched import MIN_HIT_IOU


def score(predictions: PredictionBundle, ground_truth: GroundTruth) -> ProtocolResult:
    """Return mIoU and F1 of a scene at the annotations' own size, and the same under the other profiles.

    Every annotated id counts, however small, and so does every predicted id that wins a pixel in an annotated view;
    there is no background rule, and true id 0 is not an object. A view without prediction counts as the predicted id
    with the largest area, which adds no id, and is listed; a view without annotation is left out and listed.

    Raises:
        ValueError: No annotated view, or a prediction of another size than its annotation.
    """
    views = aligned(predictions, ground_truth)
    matching, warnings = views.matching_report(), views.warnings()
    scene: dict[str, float] = {}
    if views.matched is None:
        warnings.append(NO_TRUE_OBJECT)
        scene["num_objects_true"] = 0
    else:
        scene = {"mIoU": views.matched.miou, "F1": views.matched.f1}
        for name, scores in matching["matching"].items():
            if name != "scene":
                suffix = name.removeprefix("scene_")
                scene |= {f"mIoU_{suffix}": scores["miou"], f"F1_{suffix}": scores["f1"]}
        scene["num_objects_true"], scene["num_objects_pred"] = views.matched.num_true, views.matched.num_pred
        scene["num_objects_found"] = views.matched.tp
    report = {
        "protocol": "replica",
        **views.facts(),
        "resampling": "none",
        "profile": "scene",
        "thresholds": {"hit_iou": MIN_HIT_IOU},
        "warnings": warnings,
        **matching,
    }
    return ProtocolResult(scores=scene, per_view=views.per_view(), report=report)


PROTOCOL = Protocol(name="replica", ground_truth="annotations", headline=("mIoU",), score=score)
