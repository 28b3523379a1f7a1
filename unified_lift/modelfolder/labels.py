"""Object ids of Gaussians and of views, read off a trained scene."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from diff_gaussian_rasterization import blend
from scipy.spatial import cKDTree
from torch import Tensor

from unified_lift import ranks
from unified_lift.methods.base import Method, Segmentation
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.model.render import blending_weights, points_seen, render
from unified_lift.modelfolder.votes import Votes
from unified_lift.types import IDENTITY, Camera, Similarity, View

_MIN_VOTE_WEIGHT = 1e-3  # a thinner share of a pixel says nothing about a Gaussian
_MAX_VOTES = 2**28  # 1 GiB
_PIXELS_AT_ONCE = 2**20  # whose blending weights are in memory together
_ROBUST = (0.05, 0.95)  # quantiles that bound what is told of an object's extent
AS_TRAINED, RETRAINED, INVENTED, RELIT = 0, 1, 2, 3
"""How a Gaussian came about, `filled` in segmentation.npz: by the training of the scene; trained again behind a removed
object; there too, but where no photo shows anything, continued from what is around; as the photos show it, but with the
shadow of a removed object taken off."""


@dataclass(frozen=True, eq=False)
class GaussianLabels:
    """Which object each Gaussian belongs to."""

    object_ids: Tensor  # int64 [N]
    confidence: Tensor  # share of the blending weight that agrees, in [0, 1]; 0 where no camera sees it, [N]
    filled: Tensor | None = field(default=None, kw_only=True)  # one of the marks above, uint8 [N]; None: the first

    @property
    def marks(self) -> Tensor:
        """Return `filled`, uint8 [N]."""
        return torch.zeros_like(self.object_ids, dtype=torch.uint8) if self.filled is None else self.filled

    def of(self, rows: Tensor) -> "GaussianLabels":
        """Return the labels of some Gaussians, bool [N] or indices."""
        filled = None if self.filled is None else self.filled[rows]
        return GaussianLabels(self.object_ids[rows], self.confidence[rows], filled=filled)


@dataclass(frozen=True, eq=False)
class Labelling(GaussianLabels):
    """What label voting over views finds."""

    areas: Tensor  # pixels of each object over the cameras, int64 [L]
    num_views: Tensor  # cameras that show a pixel of each object, int64 [L]
    codes: Tensor | None = None  # unit feature of each object, of which these are made, [L, D]
    features: Tensor | None = None  # what Gaussians get in place of their features, [N, D]; None: they keep them


@torch.no_grad()
def label_gaussians(
    gaussians: Gaussians, method: Method, cameras: Sequence[Camera], *, max_votes: int = _MAX_VOTES
) -> Labelling:
    """Return labels of all lifted Gaussians by label voting of the pixels of all cameras.

    Every pixel gives its object to the Gaussians in front of it, in proportion to their blending weights: only blends
    of features were trained, never single features. A Gaussian that no camera sees takes the object of the nearest one
    that is seen.
    Where the method has a feature for each object, a mean of these by the votes is returned too. Of several processes,
    which all have to ask, each counts the votes of its share of the cameras.

    Source: ours; the paper applies Eq. 2 to the single feature.
    Args:
        max_votes: Most float32 votes of one view in memory; of all views, only pairs with votes are.
    """
    num_objects, count, device = method.num_objects, len(gaussians), gaussians.device
    areas, num_views = torch.zeros(2, num_objects, dtype=torch.int64, device=device)
    final, votes = method.final_features(), Votes(count, num_objects, device, max_cells=max_votes)
    table = torch.cat([gaussians.features, gaussians.means, torch.ones_like(gaussians.means[:, :1])], dim=1)
    together = ranks.current()
    for camera in cameras[together.index :: together.count]:
        weights = blending_weights(gaussians, camera, min_weight=_MIN_VOTE_WEIGHT)
        blended = blend(weights, table)
        ids = method.vote(blended[:, :-4], blended[:, -4:-1] / blended[:, -1:].clamp(min=1e-6))  # [P]
        votes.add(weights, ids)
        counted = (ids >= 0) & (weights.offsets.diff() > 0)
        counts = torch.zeros_like(areas).index_add_(0, ids.clamp(min=0), counted.long())
        areas += counts
        num_views += counts > 0
    together.add(areas, num_views)
    votes.join(together)
    entries = votes.entries()
    (object_ids, best), total = entries.winners(), entries.totals()
    unseen, total = total == 0, total.clamp(min=1e-12)
    if unseen.any() and not unseen.all():
        nearest = cKDTree(gaussians.means[~unseen].cpu()).query(gaussians.means[unseen].cpu(), workers=-1)[1]
        object_ids[unseen] = object_ids[~unseen][torch.from_numpy(nearest).to(device)]
    found = Labelling(object_ids, torch.where(unseen, 0.0, best / total), areas, num_views)
    if final is None:
        return found
    sums, shares = entries.mixed(final.codes, power=final.power)
    features = torch.where(shares[:, None] > 0, sums / shares[:, None], final.codes[object_ids])
    return replace(found, codes=final.codes, features=features)


@torch.no_grad()
def unclaimed_object(gaussians: Gaussians, method: Method, views: Sequence[View]) -> int | None:
    """Return the object that most pixels of mask id 0 show in the labelled views, None where no pixel has this id."""
    counts = torch.zeros(method.num_objects, device=gaussians.device)
    for view in views:
        assert view.segments is not None
        out = render(gaussians, view.camera)
        own = method.vote(out.features.flatten(0, 1), points_seen(out, view.camera))
        free = (view.segments == 0 if view.valid is None else (view.segments == 0) & view.valid).flatten()
        counts += torch.bincount(own[free.to(own.device) & (own >= 0)], minlength=len(counts))
    return int(counts.argmax()) if counts.any() else None


def by_falling_area(method: Method, labels: Labelling, *, last: int | None = None) -> Labelling:
    """Renumber the objects by falling area, so that id 0 is usually the background; `last` comes last in any case."""
    areas = labels.areas if last is None else labels.areas.index_fill(0, labels.areas.new_tensor([last]), -1)
    order = torch.argsort(areas, descending=True, stable=True)
    method.reorder(order)
    ids = torch.argsort(order)[labels.object_ids]
    ordered = {"areas": labels.areas[order], "num_views": labels.num_views[order]}
    return replace(labels, object_ids=ids, **ordered, codes=None if labels.codes is None else labels.codes[order])


@torch.no_grad()
def segment_by_labels(
    gaussians: Gaussians, ids: Tensor, camera: Camera, *, pixels: Tensor | None = None, max_votes: int = _MAX_VOTES
) -> Segmentation:
    """Return the object of every pixel by label voting of the Gaussians it shows, weighted by their blending weights.

    Unlike features it tells a copy from its original, since both have the same features.

    Args:
        ids: Object of each Gaussian, int64 [N].
        pixels: (x, y) int64 [P, 2]; None = all.
        max_votes: Most float32 votes in memory, of pixels for the objects that a block of them shows.
    Returns:
        Ids and shares of the votes for them, [H, W] or [P]; 0 and 0 where no Gaussian is.
    """
    shape = (camera.height, camera.width) if pixels is None else (len(pixels),)
    if pixels is None:
        pixels = torch.cartesian_prod(torch.arange(camera.height), torch.arange(camera.width)).flip(1)
    found = []
    for block in pixels.to(gaussians.device).split(_PIXELS_AT_ONCE):
        weights = blending_weights(gaussians, camera, pixels=block, min_weight=_MIN_VOTE_WEIGHT)
        shown, pixel = ids.index_select(0, weights.gaussian_ids), weights.row_ids()
        values = shown[torch.cat([shown.new_ones(1), shown.diff()])[: len(shown)] != 0].unique()  # of one in each run
        slots, rows = torch.searchsorted(values, shown), max(1, max_votes // max(len(values), 1))
        for first in range(0, len(block), rows):
            begin, end = weights.offsets[[first, min(first + rows, len(block))]].tolist()
            votes = torch.zeros(min(rows, len(block) - first), max(len(values), 1), device=gaussians.device)
            place = (pixel[begin:end] - first) * len(values) + slots[begin:end]
            votes.view(-1).index_add_(0, place, weights.weights[begin:end])
            best, slot = votes.max(dim=1)
            named = torch.where(best > 0, values[slot], 0) if len(values) else slot
            found.append(Segmentation(named, best / votes.sum(dim=1).clamp(min=1e-12)))
    return Segmentation(*(torch.cat(parts).view(shape) for parts in zip(*found, strict=True)))


def robust_box(places: np.ndarray) -> np.ndarray:
    """Return the box of places [M, 3] between the 5 % and 95 % quantiles of each axis, so without outliers, [2, 3]."""
    return np.quantile(places, _ROBUST, axis=0)


def describe_objects(
    gaussians: Gaussians,
    labels: GaussianLabels,
    *,
    names: Mapping[int, str] | None = None,
    num_views: Mapping[int, int] | None = None,
    frame: Similarity = IDENTITY,
) -> dict[int, dict[str, Any]]:
    """Return id -> {name, count, color, bbox, bbox_90, centroid, views, score} of every object with a Gaussian.

    Colour is the mean SH degree 0 colour, 0..255; bbox is [min, max] of the centres that some camera saw, bbox_90 their
    `robust_box`; score is the mean confidence. `views` is left out without `num_views`. Places are the user's: outside
    of `frame`.
    Where a hole was filled, also `filled`: how many are retrained, invented, relit.
    """
    means = frame.outside(gaussians.means.detach().cpu().numpy())
    colors = gaussians.sh0.detach()[:, 0].cpu().numpy()
    ids, confidence = labels.object_ids.cpu().numpy(), labels.confidence.cpu().numpy()
    order = np.argsort(ids, kind="stable")

    def shown(sh0: np.ndarray) -> np.ndarray:
        return (sh0 * SH_C0 + 0.5).clip(0, 1) * 255

    objects = {}
    for rows in np.split(order, np.flatnonzero(np.diff(ids[order])) + 1):
        object_id = int(ids[rows[0]])
        seen = rows[confidence[rows] > 0]  # Gaussians that no camera saw may lie anywhere
        place = means[seen if len(seen) else rows]
        objects[object_id] = {
            "name": (names or {}).get(object_id, f"object {object_id}"),
            "count": len(rows),
            "color": [int(c) for c in shown(colors[rows]).mean(axis=0).round()],
            "bbox": [place.min(axis=0).tolist(), place.max(axis=0).tolist()],
            "bbox_90": robust_box(place).tolist(),
            "centroid": place.mean(axis=0).tolist(),
            **({} if num_views is None else {"views": num_views.get(object_id, 0)}),
            "score": round(float(confidence[rows].mean()), 4),
        }
        if labels.filled is not None:
            marks = labels.filled[torch.from_numpy(rows)].cpu()
            objects[object_id]["filled"] = {
                name: int((marks == mark).sum())
                for name, mark in (("retrained", RETRAINED), ("invented", INVENTED), ("relit", RELIT))
            }
    return objects
