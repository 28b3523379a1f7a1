"""Two terms that train a linear classifier of features: on pixels with known class, and on neighbouring Gaussians."""

import math

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, log_softmax

from unified_lift.shapes import check_shapes


def identity_loss(logits: Tensor, labels: Tensor, *, rest_when_right: bool = False) -> Tensor:
    """Return the cross-entropy of the pixels that have a class, divided by ln L.

    Source: Eq. 4 (its division: released code); Gaussian Grouping; Panoptic Lifting, which rests when all is right.
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


def knn_loss(
    features: Tensor, neighbours: Tensor, weight: Tensor, bias: Tensor, *, num_anchors: int, generator: torch.Generator
) -> Tensor:
    """Return how much the classes of Gaussians differ from those of the Gaussians around them.

    Source: Gaussian Grouping's 3D regulariser, without its factor 2.
    Args:
        features: Of all Gaussians, [N, D].
        neighbours: Nearest Gaussians of each by position, itself the first, so K - 1 tell something, int64 [N, K].
        weight, bias: Of the classifier, [L, D] and [L].
        num_anchors: Gaussians compared with their neighbours, drawn without replacement.
        generator: Of the draws, on the device of the features.
    Returns:
        Scalar: KL(anchor || neighbour) of the softmax of both, mean over anchors and neighbours, divided by L (their
        code divides by the number of classes too, which is 256 there).
    Gradient: to features, weight and bias.
    Differs: their Gaussians move, so they seek neighbours anew in each step, among at most 200,000; exact log-softmax
        where their code adds 1e-10 to probabilities before the logarithm.
    """
    table = {"features": (features, "N D"), "neighbours": (neighbours, "N K")}
    check_shapes(table | {"weight": (weight, "L D"), "bias": (bias, "L")})
    anchors = torch.randperm(len(features), generator=generator, device=features.device)[:num_anchors]
    near = neighbours.index_select(0, anchors)  # [A, K]
    anchor = log_softmax(linear(features.index_select(0, anchors), weight, bias), dim=1)[:, None]  # [A, 1, L]
    neighbour = log_softmax(linear(features.index_select(0, near.flatten()), weight, bias), dim=1)
    neighbour = neighbour.view(*near.shape, -1)  # [A, K, L]
    return (anchor.exp() * (anchor - neighbour)).sum(dim=2).mean() / len(weight)
