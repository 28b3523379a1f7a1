"""Nearest-neighbour distances of point sets."""

from __future__ import annotations

from simple_knn import distCUDA2
from torch import Tensor


def mean_squared_distance_to_3_nearest(points: Tensor) -> Tensor:
    """Return the mean squared distance of each point to its three nearest others, from which start scales are taken.

    Source: the initial scale rule of 3D-GS.
    Args:
        points: Positions in world units, [N, 3].
    Returns:
        Squared distances, float32 [N]; with fewer than four points the mean runs over those there are, one point alone
        gets zero.
    Gradient: none.
    """
    return distCUDA2(points.detach())
