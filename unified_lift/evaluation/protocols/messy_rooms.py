"""Messy Rooms: PQ over the scene, every label map resampled to a square first (Table 3 of the paper)."""

from dataclasses import replace

from unified_lift.evaluation.protocols.base import GroundTruth, PredictionBundle, Protocol, ProtocolResult, aligned
from unified_lift.evaluation.protocols.generic import panoptic_result
from unified_lift.ops.resample import nearest

SIZE = 512  # at which the scorer compares label maps, whatever their own [Contrastive Lift]


def score(predictions: PredictionBundle, ground_truth: GroundTruth) -> ProtocolResult:
    """Return Contrastive Lift's scores: those of `generic` on maps resampled after the background is found."""
    views = aligned(predictions, ground_truth)
    preds, trues = ([nearest(view, SIZE, SIZE) for view in maps] for maps in (views.preds, views.trues))
    counted = {name: nearest(pixels, SIZE, SIZE) for name, pixels in views.counted.items()}
    resampled = replace(views, preds=preds, trues=trues, counted=counted)
    return panoptic_result("messy_rooms", resampled, resampling="nearest, centre rule")


PROTOCOL = Protocol(name="messy_rooms", ground_truth="annotations", headline=("PQ_scene",), score=score)
