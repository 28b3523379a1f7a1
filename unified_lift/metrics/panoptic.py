"""PQ_scene: panoptic quality over the pixels of all views together, as the Messy Rooms benchmark scores it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unified_lift.metrics.base import Metric
from unified_lift.ops.overlaps import compress, overlaps_of

MIN_MATCH_IOU = 0.5  # two segments match above this, strictly; at most one partner can reach it
MAX_VOID_SHARE = 0.5  # a segment without match is forgiven when more of it lies on void of the other side
MIN_CLASS_SHARE = 0.005  # a class that fills less of the pixels, predicted or true, is not scored
METRICS = (
    Metric(name="PQ_scene", label="panoptic quality over the scene", is_headline=True),
    Metric(name="SQ_scene", label="its segmentation part"),
    Metric(name="RQ_scene", label="its recognition part"),
    Metric(name="PQ_things", label="panoptic quality of objects"),
    Metric(name="PQ_stuff", label="panoptic quality of the background"),
)


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Panoptic quality of one class: pq = sq x rq, `iou` the sum over the `tp` matched pairs."""

    pq: float
    sq: float
    rq: float
    iou: float
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True, kw_only=True)
class PanopticScores:
    """Plain means over `per_class`, things first; `dropped`: classes that fill less than the least share."""

    pq: float
    sq: float
    rq: float
    per_class: dict[int, ClassScores]
    dropped: tuple[int, ...]


def pq_scene(
    pred_sem: np.ndarray,
    pred_ids: np.ndarray,
    true_sem: np.ndarray,
    true_ids: np.ndarray,
    *,
    things: Sequence[int],
    stuff: Sequence[int],
    min_share: float = MIN_CLASS_SHARE,
) -> PanopticScores:
    """Return the panoptic quality of a scene from class and id of every pixel of all views, integers of one shape.

    A segment is a (class, id) pair over all pixels, so an object must keep its id from view to view. All ids of a
    class of `stuff` are one segment. Pixels of a class that is not scored are void on their side.

    Source: Kirillov et al. 2019, scene version of Panoptic Lifting and Contrastive Lift.
    A ValueError: unequal shapes, or no class is left to score.
    """
    planes = [np.asarray(plane).reshape(-1) for plane in (pred_sem, pred_ids, true_sem, true_ids)]
    if len({plane.shape for plane in planes}) != 1:
        raise ValueError(f"the four label maps must have one shape, received {[p.shape for p in planes]}")
    shares = {label: [np.mean(sem == label) for sem in planes[::2] if len(sem)] for label in (*things, *stuff)}
    # Only a side that has the class can drop it: predicting none of it must not remove it.
    dropped = tuple(label for label, found in shares.items() if any(0 < share < min_share for share in found))
    used = [label for label, found in shares.items() if any(found) and label not in dropped]
    if not used:
        raise ValueError("no class fills its least share of the pixels in both prediction and annotation")
    pred, true = (_segments(sem, ids, used, stuff) for sem, ids in (planes[:2], planes[2:]))
    per_class = _score(*pred, *true, used)
    pq, sq, rq = np.mean([(c.pq, c.sq, c.rq) for c in per_class.values()], axis=0).tolist()
    return PanopticScores(pq=pq, sq=sq, rq=rq, per_class=per_class, dropped=dropped)


def _segments(sem: np.ndarray, ids: np.ndarray, used: list[int], stuff: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a segment number for every pixel (0 = void) and the class index of every segment number [S + 1]."""
    values, dense = compress(ids)
    number = np.zeros(len(sem), dtype=np.int64)
    for index, label in enumerate(used):
        chosen = sem == label
        number[chosen] = 1 + index * len(values) + (0 if label in stuff else dense[chosen])
    return number, np.concatenate([[-1], np.repeat(np.arange(len(used)), len(values))])


def _score(
    pred: np.ndarray, pred_class: np.ndarray, true: np.ndarray, true_class: np.ndarray, used: list[int]
) -> dict[int, ClassScores]:
    both = overlaps_of(pred, true)
    pred_class, true_class = pred_class[both.pred_ids], true_class[both.true_ids]
    pred_area, true_area = both.areas()
    of_pred, of_true = pred_class[both.pred], true_class[both.true]
    pred_on_void = np.bincount(both.pred, both.shared * (of_true < 0), len(pred_class))  # [P]
    true_on_void = np.bincount(both.true, both.shared * (of_pred < 0), len(true_class))  # [T]
    union = (pred_area - pred_on_void)[both.pred] + (true_area - true_on_void)[both.true] - both.shared
    iou = np.where((of_pred == of_true) & (of_pred >= 0), both.shared / np.maximum(union, 1), 0.0)  # of each pair
    match = iou > MIN_MATCH_IOU
    found = np.bincount(both.true[match], minlength=len(true_class)) > 0
    used_up = np.bincount(both.pred[match], minlength=len(pred_class)) > 0
    lost = ~found & (true_on_void <= MAX_VOID_SHARE * true_area)
    made_up = ~used_up & (pred_on_void <= MAX_VOID_SHARE * pred_area)
    result = {}
    for index, label in enumerate(used):
        rows, hits = pred_class == index, iou[match & (of_pred == index)]
        tp, total = len(hits), float(hits.sum())
        fp, fn = int(made_up[rows].sum()), int(lost[true_class == index].sum())
        sq, rq = total / tp if tp else 0.0, tp / (tp + fp / 2 + fn / 2) if tp else 0.0
        result[label] = ClassScores(pq=sq * rq, sq=sq, rq=rq, iou=total, tp=tp, fp=fp, fn=fn)
    return result


def largest_area_background(preds: Sequence[np.ndarray]) -> int:
    """Return the id that covers the most pixels of all views [H, W] together, the smallest of equals.

    Source: Section 4.1 of the paper: this segment is the background. A ValueError: there are no pixels.
    """
    values, dense = compress(np.concatenate([np.zeros(0, int), *(np.asarray(view).reshape(-1) for view in preds)]))
    if not values.size:
        raise ValueError("there are no predicted pixels to find the background in")
    return int(values[np.bincount(dense).argmax()])
