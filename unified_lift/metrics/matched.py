"""mIoU and F1 under the best one-to-one matching of predicted and true objects over a whole scene."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from unified_lift.metrics.base import Metric
from unified_lift.ops.overlaps import Overlaps, overlaps_of

Profile = Literal["scene", "scene_masked", "viewmean", "scene_from_100_px"]

MIN_HIT_IOU = 0.5  # a matched pair counts as found when its IoU is above this, strictly
MAX_MATRIX = 2**22  # cells of a matrix that is matched as it is
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


def match_pairs(
    true: np.ndarray, pred: np.ndarray, iou: np.ndarray, true_ids: np.ndarray, pred_ids: np.ndarray
) -> MatchedScores:
    """Return the scores of the one-to-one matching with the largest sum of IoU; a ValueError: no true object.

    Args:
        true, pred: Index of the ids of each pair that overlaps, int64 [E].
        iou: Of each pair, above 0, [E]; of all others it is 0.
        true_ids, pred_ids: [T] and [P].
    """
    num_true, num_pred = len(true_ids), len(pred_ids)
    if not num_true:
        raise ValueError("there is no true object to match")
    if num_true * num_pred <= MAX_MATRIX:
        matrix = np.zeros((num_true, num_pred))
        matrix[true, pred] = iou
        rows, columns = linear_sum_assignment(matrix, maximize=True)
        values = matrix[rows, columns]
    else:  # each true object may also be matched with a partner of its own, which is nothing
        own, weights = np.arange(num_true), np.concatenate([1 + iou, np.ones(num_true)])  # a weight of 0 is no edge
        edges = np.concatenate([true, own]), np.concatenate([pred, num_pred + own])
        graph = csr_array((weights, edges), shape=(num_true, num_pred + num_true))
        rows, columns = min_weight_full_bipartite_matching(graph, maximize=True)
        is_real = columns < num_pred
        rows, columns = rows[is_real], columns[is_real]
        values = csr_array((iou, (true, pred)), shape=(num_true, num_pred))[rows, columns]
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
    views = [overlaps_of(pred, true) for pred, true in zip(preds, trues, strict=True)]
    whole = Overlaps.merged(views)
    rows, columns = whole.true_ids != 0, np.ones(len(whole.pred_ids), dtype=bool)
    if profile == "viewmean":
        rows[:] = True
        of_true = [np.searchsorted(whole.true_ids, one.true_ids) for one in views]
        of_pred = [np.searchsorted(whole.pred_ids, one.pred_ids) for one in views]
        rows_of = np.concatenate([of[one.true] for one, of in zip(views, of_true, strict=True)])
        columns_of = np.concatenate([of[one.pred] for one, of in zip(views, of_pred, strict=True)])
        pair, index = np.unique(rows_of * len(columns) + columns_of, return_inverse=True)
        true, pred = pair // max(len(columns), 1), pair % max(len(columns), 1)
        num_views = np.bincount(np.concatenate(of_true), minlength=len(rows))
        iou = np.bincount(index, np.concatenate([one.iou() for one in views]), len(pair)) / num_views[true]
    else:
        if profile == "scene_masked":
            whole = whole.of(rows[whole.true])
            columns = np.isin(np.arange(len(columns)), whole.pred)
        elif profile == "scene_from_100_px":  # areas stay those of the whole scene
            pred_area, true_area = whole.areas()
            rows &= true_area >= MIN_SEGMENT_PIXELS
            columns = pred_area >= MIN_SEGMENT_PIXELS
        true, pred, iou = whole.true, whole.pred, whole.iou()
    kept = rows[true] & columns[pred]
    places = np.cumsum(rows) - 1, np.cumsum(columns) - 1
    return match_pairs(
        places[0][true[kept]], places[1][pred[kept]], iou[kept], whole.true_ids[rows], whole.pred_ids[columns]
    )
