"""Scores of one binary mask against another: IoU and boundary IoU."""

import cv2
import numpy as np

BOUNDARY_RATIO = 0.02  # of the image diagonal: the width of the band [Cheng et al. 2021]


def iou(pred: np.ndarray, true: np.ndarray) -> float | None:
    """Return intersection over union of two masks, bool [H, W], None where both are empty (nothing to score).

    Raises:
        ValueError: The shapes differ.
    """
    if pred.shape != true.shape:
        raise ValueError(f"masks must have one shape, received {pred.shape} and {true.shape}")
    union = np.count_nonzero(pred | true)
    return np.count_nonzero(pred & true) / union if union else None


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


def boundary_iou(pred: np.ndarray, true: np.ndarray) -> float | None:
    """Return the IoU of the boundary bands of two masks, None where both are empty. Arguments as in `iou`."""
    width = boundary_width(*true.shape)
    return iou(boundary(pred, width=width), boundary(true, width=width))
