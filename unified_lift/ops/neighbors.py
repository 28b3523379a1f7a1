"""Nearest neighbours of points."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor


def nearest_points(points: Tensor, count: int) -> Tensor:
    """Return the `count` nearest of the points to each of them, itself the first, int64 [N, K] on the CPU.

    Args:
        points: Positions, [N, 3].
        count: Where there are fewer points, K = N.
    """
    positions = points.detach().cpu().double().numpy()
    found = cKDTree(positions).query(positions, k=list(range(1, min(count, len(positions)) + 1)), workers=-1)[1]
    nearest, own = torch.from_numpy(found).long(), torch.arange(len(positions))
    # Of several points at one place the tree may name another first, or leave this one out.
    place = torch.where((nearest == own[:, None]).any(dim=1), (nearest == own[:, None]).int().argmax(dim=1), -1)
    place = torch.where(place < 0, nearest.shape[1] - 1, place)
    nearest[own, place] = nearest[:, 0].clone()
    nearest[:, 0] = own
    return nearest
