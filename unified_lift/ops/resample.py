"""Nearest-neighbour resampling of label maps by the centre rule."""

from typing import TypeVar

import numpy as np
from torch import Tensor

Ids = TypeVar("Ids", np.ndarray, Tensor)


def nearest_indices(num_in: int, num_out: int) -> np.ndarray:
    """Return the source index of every output index: floor((i + 0.5) * num_in / num_out), int64 [num_out].

    This is the rule of Pillow and of the panoptic scorers. OpenCV and torch take the corner rule floor(i * in / out)
    instead, which shifts a label map by up to half a pixel. Whole numbers throughout, so ties round the same way
    everywhere.
    """
    if num_in < 1 or num_out < 1:
        raise ValueError(f"sizes must be positive, received {num_in} -> {num_out}")
    return (2 * np.arange(num_out, dtype=np.int64) + 1) * num_in // (2 * num_out)


def nearest(ids: Ids, height: int, width: int) -> Ids:
    """Return a label map [H, W], numpy or torch, at another size in pixels [height, width] without mixing ids."""
    if ids.ndim != 2:
        raise ValueError(f"ids must be [H, W], received {list(ids.shape)}")
    if tuple(ids.shape) == (height, width):
        return ids
    rows, cols = nearest_indices(ids.shape[0], height), nearest_indices(ids.shape[1], width)
    return ids[rows][:, cols]
