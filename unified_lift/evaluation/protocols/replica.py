"""Replica: mIoU and F1 under the best one-to-one matching over the scene (Tables 2 and 4 of the paper).

No scorer was published. `scene` is our reading and the headline; the nearest public relative, Gaga's scorer
(`viewmean`), and two more readings stand beside it.
"""

from __future__ import annotations

from unified_lift.evaluation.protocols.base import (
    Protocol,
    ProtocolResult,
    Subject,
    aligned,
    matching_profiles,
    object_list,
    scores_of_views,
    view_facts,
    view_warnings,
)
from unified_lift.metrics.matched import MIN_HIT_IOU, matched_scores


def score(subject: Subject) -> ProtocolResult:
    """Return mIoU and F1 of a scene at the annotations' own size, and the same under the other profiles.

    Every annotated id counts, however small, and so does every predicted id that wins a pixel in an annotated view;
    there is no background rule, and true id 0 is not an object. A view without prediction counts as the predicted id
    with the largest area, which adds no id, and is listed; a view without annotation is left out and listed.

    Raises:
        ValueError: No annotated view, or a prediction of another size than its annotation.
    """
    views = aligned(subject)
    report: dict[str, object] = {
        "protocol": "replica",
        **view_facts(views),
        "resampling": "none",
        "profile": "scene",
        "thresholds": {"hit_iou": MIN_HIT_IOU},
    }
    warnings = view_warnings(without_annotation=views.without_annotation, without_prediction=views.without_prediction)
    if not any(true.any() for true in views.trues):
        warnings.append("no true object occurs in the scored views, so mIoU and F1 do not apply")
        return ProtocolResult(
            scene={"num_objects_true": 0},
            per_view=scores_of_views(views, None),
            report=report | {"warnings": warnings},
        )
    matched = matched_scores(views.preds, views.trues, profile="scene")
    profiles = matching_profiles(views, matched)
    scene: dict[str, float] = {"mIoU": matched.miou, "F1": matched.f1}
    for name, scores in profiles.items():
        if name != "scene":
            suffix = name.removeprefix("scene_")
            scene |= {f"mIoU_{suffix}": scores["miou"], f"F1_{suffix}": scores["f1"]}
    scene |= {
        "num_objects_true": matched.num_true,
        "num_objects_pred": matched.num_pred,
        "num_objects_found": matched.tp,
    }
    report |= {"warnings": warnings, "matching": profiles, "objects": object_list(views, matched)}
    return ProtocolResult(scene=scene, per_view=scores_of_views(views, matched), report=report)


PROTOCOL = Protocol(name="replica", truth="annotations", headline=("mIoU",), score=score)
