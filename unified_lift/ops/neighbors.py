"""Nearest neighbours of points."""

import torch
from scipy.spatial import cKDTree
from torch import Tensor


def nearest_points(points: Tensor, count: int) -> Tensor:
    """Return the `count` (at most N) nearest of points [N, 3] to each, itself the first, int64 [N, K] on the CPU."""
    positions = points.detach().cpu().double().numpy()
    found = cKDTree(positions).query(positions, k=list(range(1, min(count, len(positions)) + 1)), workers=-1)[1]
    nearest, own = torch.from_numpy(found).long(), torch.arange(len(positions))
    # Of several points at one place the tree may name another first, or leave this one out.
    is_own = nearest == own[:, None]
    place = torch.where(is_own.any(dim=1), is_own.int().argmax(dim=1), nearest.shape[1] - 1)
    nearest[own, place] = nearest[:, 0].clone()
    nearest[:, 0] = own
    return nearest
