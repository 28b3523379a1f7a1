"""Mean squared distance of points to their three nearest neighbours."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

_NUM_NEIGHBORS = 3
_CHUNK = 1 << 18  # queries at a time: bounds the memory of neighbour lists


def distCUDA2(points: Tensor) -> Tensor:  # noqa: N802 (historic name, kept for drop-in use)
    """Return the mean squared distance of each point to its three nearest others.

    Args:
        points: Positions, [N, 3], any floating type and device.
    Returns:
        float32 [N] on the device of `points`. Duplicates count as neighbours at distance zero. With fewer than four
        points the mean runs over those there are; a single point gets zero.
    Gradient: none.
    Raises:
        ValueError: `points` is not [N, 3] or holds NaN or infinity.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must be [N, 3], received {list(points.shape)}")
    coordinates = points.detach().cpu().to(torch.float64).numpy()
    if not np.isfinite(coordinates).all():
        raise ValueError("points hold NaN or infinite coordinates")
    neighbors = min(_NUM_NEIGHBORS, len(coordinates) - 1)
    mean = np.zeros(len(coordinates))
    tree = cKDTree(coordinates)
    for start in range(0, len(coordinates) if neighbors > 0 else 0, _CHUNK):
        # The first hit is the point itself or a duplicate of it: distance zero in either case, so it may go.
        distance, _ = tree.query(coordinates[start : start + _CHUNK], k=neighbors + 1, workers=-1)
        mean[start : start + _CHUNK] = (distance[:, 1:] ** 2).mean(axis=1)
    return torch.from_numpy(mean.astype(np.float32)).to(points.device)
