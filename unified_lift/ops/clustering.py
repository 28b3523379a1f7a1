"""Clusters of points by density, and the nearest of them for any other point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.shapes import check_shapes

_MAX_SIGMA = 3.0  # from the mean, up to which a point is kept [Contrastive Lift]
_MIN_WIDTH = 1e-12  # of a dimension in which all points agree


def require_hdbscan() -> Any:
    """Return scikit-learn's class HDBSCAN.

    Raises:
        UserError: scikit-learn is not installed, or older than 1.3.
    """
    try:
        from sklearn.cluster import HDBSCAN
    except ImportError:
        raise UserError(
            "scikit-learn 1.3 or newer is missing, which clusters the features of this --method; "
            'pip install "unified-lift[baselines]"'
        ) from None
    return HDBSCAN


@torch.no_grad()
def hdbscan_centroids(points: Tensor, *, min_cluster_size: int) -> Tensor:
    """Return the centroid of each cluster of the points: their mean, weighted by how surely each belongs to it.

    Source: HDBSCAN (Campello et al. 2013) as Contrastive Lift calls it: min_samples 1, a single cluster allowed.
    Args:
        points: [M, D]; a point with NaN or infinite numbers belongs to no cluster.
        min_cluster_size: Fewer points than this are no cluster; at least 2.
    Returns:
        Float32 [L, D] on the device of the points; L is 0 where nothing is dense enough.
    Raises:
        UserError: As `require_hdbscan`.
    """
    check_shapes({"points": (points, "M D")})
    hdbscan = require_hdbscan()
    if len(points) < 2:  # which scikit-learn refuses
        return points.new_zeros(0, points.shape[1], dtype=torch.float32)
    rows = points.detach().double().cpu()
    # copy=True: older versions may write into the array they are given, newer ones warn where nothing is said
    found = hdbscan(min_cluster_size=min_cluster_size, min_samples=1, allow_single_cluster=True, copy=True)
    found.fit(rows.numpy())
    labels, weights = torch.from_numpy(found.labels_).long(), torch.from_numpy(found.probabilities_)
    member = labels >= 0  # -1: noise; -2, -3: not finite
    labels, rows, weights = labels[member], rows[member], weights[member, None]
    count = int(labels.max()) + 1 if len(labels) else 0
    total = rows.new_zeros(count, rows.shape[1]).index_add_(0, labels, weights * rows)
    share = rows.new_zeros(count, 1).index_add_(0, labels, weights)
    return (total / share).float().to(points.device)


def box_without_outliers(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return which points lie near the mean in every dimension, and the box around these.

    Source: the clustering protocol of Contrastive Lift.
    Args:
        points: At least one, [M, D].
    Returns:
        kept: Within three standard deviations of the mean in every dimension; all points if none is, bool [M].
        box: Least of the kept points and how far above it the largest lies, dimension by dimension, [2, D].
    """
    check_shapes({"points": (points, "M D")})
    deviation = (points - points.mean(dim=0)).abs()
    kept = (deviation <= _MAX_SIGMA * points.std(dim=0, correction=0)).all(dim=1)
    if not kept.any():  # in many dimensions each point may be far out in one of them
        kept = torch.ones_like(kept)
    low, high = points[kept].amin(dim=0), points[kept].amax(dim=0)
    return kept, torch.stack([low, (high - low).clamp(min=_MIN_WIDTH)])


def centroid_logits(points: Tensor, centroids: Tensor, *, temperature: float) -> Tensor:
    """Return -|x - c|^2 / (2 temperature) up to a number of each point: the largest is that of the nearest centroid.

    Between unit vectors that is the cosine / temperature. The softmax tells how near the nearest is among all.

    Args:
        points: x, [P, D].
        centroids: c, [L, D].
        temperature: Positive.
    Returns:
        [P, L].
    """
    check_shapes({"points": (points, "P D"), "centroids": (centroids, "L D")})
    return (points @ centroids.T - centroids.square().sum(dim=1) / 2) / temperature
