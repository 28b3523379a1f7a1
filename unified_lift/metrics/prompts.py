"""Text prompts as LERF-Mask scores them: ids chosen in one view, masks in any, (boundary) IoU of masks, and means."""

import functools
import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from unified_lift.metrics.base import Metric
from unified_lift.ops.overlaps import overlap_table

MIN_SHARE = 0.7  # an id belongs to a prompt when more of its own pixels lie in the prompt's mask, strictly
MIN_PROBABILITY = 0.2  # a pixel belongs to every id that is more likely there, strictly
BOUNDARY_RATIO = 0.02  # of the image diagonal: the width of the band [Cheng et al. 2021]
MASK_LEVEL = 128  # a mask file shows its object where it is brighter, strictly
NO_ID = -1  # fills the places of `likely_ids` that no id takes
METRICS = (
    Metric(name="mBIoU", label="mean boundary IoU of prompts", is_headline=True),
    Metric(name="mIoU_oracle", label="mean IoU of prompts shown in one view", is_headline=True),
    Metric(name="mBIoU_oracle", label="their mean boundary IoU"),
    Metric(name="mIoU_best_id", label="mean IoU of the best ids: upper bound", is_headline=True),
)


def iou(pred: np.ndarray, true: np.ndarray) -> float | None:
    """Return the IoU of two masks, bool [H, W], None where both are empty; a ValueError: the shapes differ."""
    if pred.shape != true.shape:
        raise ValueError(f"masks must have one shape, received {pred.shape} and {true.shape}")
    union = np.count_nonzero(pred | true)
    return np.count_nonzero(pred & true) / union if union else None


def boundary_iou(pred: np.ndarray, true: np.ndarray) -> float | None:
    """Return the IoU of the boundary bands of two masks, None where both are empty; see `iou`."""
    width = boundary_width(*true.shape)
    return iou(boundary(pred, width=width), boundary(true, width=width))


def boundary_width(height: int, width: int) -> int:
    """Return the width of the boundary band, pixels: 2 % of the diagonal, rounded half to even, at least 1."""
    return max(1, round(BOUNDARY_RATIO * float(np.hypot(height, width))))


def boundary(mask: np.ndarray, *, width: int) -> np.ndarray:
    """Return the pixels of a mask within `width` of the background, bool [H, W].

    Source: Boundary IoU, Cheng et al. 2021: the mask minus `width` erosions by a 3 x 3 window, so `width` is a
    Chebyshev distance in pixels; everything outside the image counts as background.
    """
    window = np.ones((3, 3), dtype=np.uint8)
    eroded = cv2.erode(mask.astype(np.uint8), window, iterations=width, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & ~eroded.astype(bool)


def select_ids(ids: np.ndarray, mask: np.ndarray, *, min_share: float = MIN_SHARE) -> dict[int, float]:
    """Return id -> share of its pixels in the mask, rising ids, where that is above `min_share` [Gaussian Grouping]."""
    present, inside, counts = overlap_table(ids, mask.astype(np.uint8))
    shares = counts[:, inside == 1].sum(axis=1) / counts.sum(axis=1)
    return {label: share for label, share in zip(present.tolist(), shares.tolist(), strict=True) if share > min_share}


def likely_ids(probabilities: Tensor, *, threshold: float = MIN_PROBABILITY) -> Tensor:
    """Return the ids whose probability [..., L], of sum 1, is above the threshold, likeliest first, int32 [..., K].

    Fewer than 1 / threshold ids can be that likely at once, so K = ceil(1 / threshold) places hold them all.
    """
    top = probabilities.topk(min(math.ceil(1 / threshold), probabilities.shape[-1]), dim=-1)
    return torch.where(top.values > threshold, top.indices, NO_ID).int()


def mask_of(likely: np.ndarray, chosen: Iterable[int]) -> np.ndarray:
    """Return where any chosen id is among the likely ones [H, W, K], bool [H, W]; no chosen id gives an empty mask."""
    return np.asarray(np.isin(likely, list(chosen)).any(axis=-1))


def means(scores: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Return the mean score of every prompt or view, from (name, score) pairs; a score of None does not count.

    Source: Gaussian Grouping's scorer: plain means over the views of a prompt, then over prompts, then over scenes.
    """
    values: dict[str, list[float]] = {}
    for name, value in scores:
        if value is not None:
            values.setdefault(name, []).append(value)
    return {name: float(np.mean(found)) for name, found in values.items()}


def best_ids(
    likely: Sequence[np.ndarray], trues: Sequence[np.ndarray], *, starts: Iterable[Iterable[int]] = ()
) -> tuple[tuple[int, ...], float]:
    """Return the ids whose mask has the largest mean IoU with the ground truth over the views, and that IoU.

    The search adds or removes one id at a time while that helps, from no ids and from each of `starts`, so it is at
    least as good as all of these. Given are ids [H, W, K] and true mask, bool [H, W], where that is not empty.
    """
    views = []  # of each, which ids are likely together [C, K], and on how many pixels in and outside the mask [C]
    for view, true in zip(likely, trues, strict=True):
        ids, index = np.unique(np.sort(view.reshape(-1, view.shape[-1]), axis=1), axis=0, return_inverse=True)
        parts = index.reshape(true.shape)[true], index.reshape(true.shape)[~true]
        views.append((ids, *(np.bincount(part, minlength=len(ids)) for part in parts)))
    candidates = {label for ids, inside, _ in views for label in ids[inside > 0].reshape(-1).tolist()} - {NO_ID}

    @functools.cache
    def score(chosen: frozenset[int]) -> float:
        values = []
        for ids, inside, outside in views:
            covered = np.isin(ids, list(chosen)).any(axis=1)
            values.append(float(inside[covered].sum() / (inside.sum() + outside[covered].sum())))
        return float(np.mean(values))

    def climb(chosen: frozenset[int]) -> frozenset[int]:
        while options := [chosen ^ {label} for label in chosen.union(sorted(candidates))]:
            better = max(options, key=score)
            if score(better) <= score(chosen):
                break
            chosen = better
        return chosen

    best = max((climb(frozenset(start)) for start in [(), *starts]), key=score)
    return tuple(sorted(best)), score(best)
