"""mIoU and F1 under the best one-to-one matching of predicted and true objects over a whole scene."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.optimize import linear_sum_assignment

from unified_lift.metrics.base import Metric
from unified_lift.ops.overlaps import overlap_table

Profile = Literal["scene", "scene_masked", "viewmean", "scene_from_100_px"]

MIN_HIT_IOU = 0.5  # a matched pair counts as found when its IoU is above this, strictly
MIN_SEGMENT_PIXELS = 100  # of the ids that `scene_from_100_px` counts
METRICS = (
    Metric(name="mIoU", label="mean IoU of matched objects, or of prompts", is_headline=True),
    Metric(name="F1", label="objects found with IoU > 0.5", is_headline=True),
    Metric(name="mIoU_masked", label="mIoU where something is annotated"),
    Metric(name="F1_masked", label="F1 where something is annotated"),
    Metric(name="mIoU_viewmean", label="mIoU, averaged view by view [Gaga]"),
    Metric(name="F1_viewmean", label="F1, averaged view by view [Gaga]"),
    Metric(name="mIoU_from_100_px", label="mIoU of objects from 100 pixels on"),
    Metric(name="F1_from_100_px", label="F1 of objects from 100 pixels on"),
    Metric(name="object_share", label="share of annotated pixels", higher_is_better=None),
)


@dataclass(frozen=True, kw_only=True)
class MatchedScores:
    """Result of a matching; `f1`, `precision` and `recall` are those of the `tp` pairs with IoU above 0.5."""

    miou: float  # sum of matched IoU over the number of true objects; an unmatched one counts 0
    f1: float
    precision: float
    recall: float
    tp: int
    num_pred: int
    num_true: int
    pairs: tuple[tuple[int, int], ...]  # true id, predicted id of every matched pair that overlaps at all
    pair_iou: tuple[float, ...]


def match_matrix(matrix: np.ndarray, true_ids: np.ndarray, pred_ids: np.ndarray) -> MatchedScores:
    """Return the scores of the one-to-one matching with the largest sum of IoU [T, P]; a ValueError if T is 0."""
    num_true, num_pred = matrix.shape
    if not num_true:
        raise ValueError("there is no true object to match")
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    values = matrix[rows, columns]
    matched, tp = values > 0, int((values > MIN_HIT_IOU).sum())
    return MatchedScores(
        miou=float(values.sum() / num_true),
        f1=2 * tp / (num_pred + num_true),
        precision=tp / num_pred if num_pred else 0.0,
        recall=tp / num_true,
        tp=tp,
        num_pred=num_pred,
        num_true=num_true,
        pairs=tuple(zip(true_ids[rows][matched].tolist(), pred_ids[columns][matched].tolist(), strict=True)),
        pair_iou=tuple(values[matched].tolist()),
    )


def iou_from_counts(counts: np.ndarray) -> np.ndarray:
    """Return the IoU of every pair of ids from their table of shared pixels, [P, T] -> [P, T]."""
    union = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True) - counts
    return counts / np.maximum(union, 1)


def matched_scores(
    preds: Sequence[np.ndarray], trues: Sequence[np.ndarray], *, profile: Profile = "scene"
) -> MatchedScores:
    """Return mIoU and F1 of a scene from the ids of each view, integers [H, W].

    Profiles:
        scene: One IoU per pair over the pixels of all views together; true id 0 is dropped, every predicted id
            counts. Primary, because identity has to hold over the scene.
        scene_masked: As `scene`, after removing the pixels whose true id is 0.
        viewmean: IoU per view, averaged over the views that show the true object; 0 is an id like others. Blind to
            an id that is used again for another object in a view without the first.
        scene_from_100_px: As `scene`, without ids of fewer pixels, so that stray pixels cannot move it.
    A ValueError: no views, unequal shapes, an unknown profile or no true object.
    """
    if profile not in get_args(Profile):
        raise ValueError(f"profile must be one of {get_args(Profile)}, received {profile!r}")
    if not len(preds) or [p.shape for p in preds] != [t.shape for t in trues]:
        raise ValueError("predictions and annotations must be the same views at the same sizes, one at least")
    pred_ids, true_ids, counts = overlap_table(*(np.concatenate([v.reshape(-1) for v in vs]) for vs in (preds, trues)))
    rows, columns = true_ids != 0, np.ones(len(pred_ids), dtype=bool)
    if profile == "viewmean":
        rows[:] = True
        total, num_views = np.zeros(counts.T.shape), np.zeros((len(true_ids), 1))
        for pred, true in zip(preds, trues, strict=True):
            in_pred, in_true, shared = overlap_table(pred, true)
            places = np.searchsorted(true_ids, in_true), np.searchsorted(pred_ids, in_pred)
            total[np.ix_(*places)] += iou_from_counts(shared).T
            num_views[places[0]] += 1
        matrix = total / num_views
    else:
        if profile == "scene_masked":
            counts = counts * rows
            columns = counts.any(axis=1)
        elif profile == "scene_from_100_px":  # areas stay those of the whole scene
            rows &= counts.sum(axis=0) >= MIN_SEGMENT_PIXELS
            columns = counts.sum(axis=1) >= MIN_SEGMENT_PIXELS
        matrix = iou_from_counts(counts).T
    return match_matrix(matrix[rows][:, columns], true_ids[rows], pred_ids[columns])
