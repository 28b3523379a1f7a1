"""Two terms that train a linear classifier of features: on pixels with known class, and on neighbouring Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, log_softmax

from unified_lift.shapes import check_shapes

_MAX_DISTANCES = 2**25  # of anchors to all points at once: 128 MiB


def identity_loss(logits: Tensor, labels: Tensor, *, rest_when_right: bool = False) -> Tensor:
    """Return the cross-entropy of the pixels that have a class, divided by ln L.

    Source: Gaussian Grouping; Panoptic Lifting, which rests when every pixel is right.
    Args:
        logits: [P, L].
        labels: Class of each pixel, int64 [P]; -1 takes no part.
        rest_when_right: Return 0 where the largest logit of every labelled pixel already is that of its class.
    Returns:
        Scalar, mean over the labelled pixels; 0 where there are none. The host never waits for it.
    """
    check_shapes({"logits": (logits, "P L"), "labels": (labels, "P")})
    labelled = labels >= 0
    total = cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    loss = total / labelled.sum().clamp(min=1) / math.log(max(logits.shape[1], 2))
    if not rest_when_right:
        return loss
    return loss * ((logits.argmax(dim=1) != labels) & labelled).any()


def knn_loss(
    features: Tensor,
    means: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    num_neighbours: int,
    num_anchors: int,
    max_points: int,
    generator: torch.Generator,
) -> Tensor:
    """Return how much the classes of Gaussians differ from those of the Gaussians around them.

    Source: Gaussian Grouping's 3D regulariser, without its factor 2.
    Args:
        features: Of all Gaussians, [N, D].
        means: Their centres, [N, 3].
        weight: Of the classifier, [L, D].
        bias: Of the classifier, [L].
        num_neighbours: K, by position; an anchor is the first of its own, so K - 1 tell something.
        num_anchors: Gaussians compared with their neighbours, drawn without replacement.
        max_points: Where there are more Gaussians, only that many, drawn without replacement, are looked at.
        generator: Of the draws, on the device of the features.
    Returns:
        Scalar: KL(anchor || neighbour) of the softmax of both, mean over anchors and neighbours, divided by L (their
        code divides by the number of classes too, which is 256 there).
    Gradient: to features, weight and bias; none to the means.
    Differs: exact log-softmax where their code adds 1e-10 to probabilities before the logarithm.
    """
    check_shapes(
        {"features": (features, "N D"), "means": (means, "N 3"), "weight": (weight, "L D"), "bias": (bias, "L")}
    )
    device, means = means.device, means.detach()
    pool = torch.randperm(len(means), generator=generator, device=device)[:max_points]
    if len(pool) < len(means):
        means, features = means.index_select(0, pool), features.index_select(0, pool)
    anchors = torch.randperm(len(means), generator=generator, device=device)[:num_anchors]
    neighbours = _nearest(means, anchors, min(num_neighbours, len(means)))
    anchor = log_softmax(linear(features.index_select(0, anchors), weight, bias), dim=1)[:, None]  # [A, 1, L]
    neighbour = log_softmax(linear(features.index_select(0, neighbours.flatten()), weight, bias), dim=1)
    neighbour = neighbour.view(*neighbours.shape, -1)  # [A, K, L]
    return (anchor.exp() * (anchor - neighbour)).sum(dim=2).mean() / len(weight)


def _nearest(points: Tensor, anchors: Tensor, count: int) -> Tensor:
    """Return the `count` points nearest to each anchor, which is one of the points, int64 [A, count]."""
    parts = anchors.split(max(1, _MAX_DISTANCES // len(points)))
    # Not by a matrix product: that cancels where a scene lies far from the origin.
    mode = "donot_use_mm_for_euclid_dist"
    rows = (torch.cdist(points.index_select(0, part), points, compute_mode=mode) for part in parts)
    return torch.cat([distances.topk(count, largest=False).indices for distances in rows])
