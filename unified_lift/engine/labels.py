"""Object ids of Gaussians and of views, read off a trained scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from diff_gaussian_rasterization import blend
from torch import Tensor

from unified_lift.methods.base import Method
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.rendering import blending_weights
from unified_lift.types import Camera

_MIN_VOTE_WEIGHT = 1e-3  # a thinner share of a pixel says nothing about a Gaussian


class GaussianLabels(NamedTuple):
    """Labels of the Gaussians.

    Attributes:
        object_ids: Code of each Gaussian, int64 [N].
        confidence: Share of its blending weight that agrees, in [0, 1]; 0 where no camera sees it, [N].
        areas: Pixels of each code over the cameras, int64 [L].
        num_views: Cameras in which each code wins a pixel, int64 [L].
    """

    object_ids: Tensor
    confidence: Tensor
    areas: Tensor
    num_views: Tensor


@torch.no_grad()
def label_gaussians(gaussians: Gaussians, method: Method, cameras: Sequence[Camera]) -> GaussianLabels:
    """Return labels of all Gaussians by votes of the pixels they blend into.

    Every pixel gives its code to the Gaussians in front of it, in proportion to their blending weights: only blends of
    features were trained, never single features. A Gaussian no camera sees takes the code of its own feature.

    Source: ours; the paper applies Eq. 2 to the single feature. Memory: N x L float32.
    """
    num_codes = next(iter(method.parameters().values())).shape[0]
    votes = torch.zeros(len(gaussians) * num_codes, device=gaussians.device)
    areas = torch.zeros(num_codes, dtype=torch.int64, device=gaussians.device)
    num_views = torch.zeros_like(areas)
    for camera in cameras:
        weights = blending_weights(gaussians, camera, min_weight=_MIN_VOTE_WEIGHT)
        ids = method.segment(blend(weights, gaussians.features)).object_ids  # [P]
        per_pixel = weights.offsets.diff()
        votes.index_add_(0, weights.gaussian_ids.long() * num_codes + ids.repeat_interleave(per_pixel), weights.weights)
        counts = torch.bincount(ids[per_pixel > 0], minlength=num_codes)
        areas += counts
        num_views += counts > 0
    votes = votes.view(len(gaussians), num_codes)
    total = votes.sum(dim=1)
    best, object_ids = votes.max(dim=1)
    unseen = total == 0
    object_ids[unseen] = method.segment(gaussians.features[unseen]).object_ids
    return GaussianLabels(object_ids, torch.where(unseen, 0.0, best / total.clamp(min=1e-12)), areas, num_views)


def by_falling_area(method: Method, labels: GaussianLabels) -> GaussianLabels:
    """Renumber the objects of `method` and `labels` by falling area, so that id 0 is usually the background."""
    order = torch.argsort(labels.areas, descending=True, stable=True)
    method.reorder(order)
    new_id = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return labels._replace(
        object_ids=new_id[labels.object_ids], areas=labels.areas[order], num_views=labels.num_views[order]
    )


def describe_objects(gaussians: Gaussians, labels: GaussianLabels) -> dict[str, dict]:
    """Return id -> {name, count, color, bbox, centroid, views, score} of every object with a Gaussian.

    Colour is the mean SH degree 0 colour, 0..255; bbox is [min, max] of the centres; score is the mean confidence.
    """
    means = gaussians.means.detach().numpy()
    colors = (gaussians.sh0.detach()[:, 0] * SH_C0 + 0.5).clamp(0, 1).numpy() * 255
    ids, confidence = labels.object_ids.numpy(), labels.confidence.numpy()
    order = np.argsort(ids, kind="stable")
    objects = {}
    for rows in np.split(order, np.flatnonzero(np.diff(ids[order])) + 1):
        code = int(ids[rows[0]])
        objects[str(code)] = {
            "name": f"object {code}",
            "count": len(rows),
            "color": [int(c) for c in colors[rows].mean(axis=0).round()],
            "bbox": [means[rows].min(axis=0).tolist(), means[rows].max(axis=0).tolist()],
            "centroid": means[rows].mean(axis=0).tolist(),
            "views": int(labels.num_views[code]),
            "score": round(float(confidence[rows].mean()), 4),
        }
    return objects
