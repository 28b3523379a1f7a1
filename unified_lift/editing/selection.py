"""Which object is meant, and which Gaussians really belong to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.metrics.image import quantize_uint8
from unified_lift.model.render import render
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import GaussianLabels, segment_by_labels
from unified_lift.types import Camera

_SPACING_NEIGHBOUR = 4  # the distance to the 4th neighbour is how far apart Gaussians of a surface lie
_MIN_PART_SHARE = 0.05  # of an object's Gaussians: a smaller piece that touches nothing of it is a stray one
CANONICAL_TEXTS = ("object", "things", "stuff", "texture")
"""What words must beat to count as found [LERF]."""
_RELEVANCY_SCALE = 10.0  # [LERF]
MIN_RELEVANCY = 0.5
"""Words fit an object better than the canonical ones do from here on."""
_CROP_MARGIN = 0.15  # of the larger side of the object's box
_GREY = 0.5


class Found(NamedTuple):
    """An object and how well it fits what was asked, 1 = perfectly."""

    object_id: int
    score: float


class BestView(NamedTuple):
    """Where an object is seen best.

    Attributes:
        camera: Index among the cameras that were asked.
        mask: Its pixels there, bool [H, W].
    """

    camera: int
    mask: np.ndarray


class TextEncoder(Protocol):
    """Puts pictures and words into one space."""

    def embed(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return unit vectors [images, E] and [texts, E] of uint8 RGB pictures of any size and of texts."""


def clean(
    scene: TrainedScene, ids: Sequence[int], *, min_confidence: float = 0.0, outliers: float = 0.0
) -> TrainedScene:
    """Return the scene in which Gaussians that hardly belong to the objects have been given to what is next to them.

    Args:
        scene: The scene.
        ids: Objects to be cleaned.
        min_confidence: Gaussians below it are given away; those that no camera saw have 0.
        outliers: Parts are given away which hold under 5 % of the object's Gaussians and are farther from its other
            parts than about this many times the usual distance between its Gaussians; 5 is a good value, 0 = off.
    Raises:
        UserError: No such object, or nothing of it would be left.
    """
    chosen = scene.mask(list(ids))
    doubtful = chosen & (scene.confidence < min_confidence)
    means = scene.gaussians.means.detach().cpu().double().numpy()
    for object_id in ids if outliers > 0 else ():
        rows = torch.nonzero(scene.mask([object_id]) & ~doubtful)[:, 0]
        stray = torch.from_numpy(_stray(means[rows.cpu().numpy()], outliers)).to(rows.device)
        doubtful[rows[stray]] = True
    for object_id in ids:
        if bool(doubtful[scene.mask([object_id])].all()):
            raise UserError(f"nothing would be left of object {object_id}; lower min_confidence or raise outliers")
    others = torch.nonzero(~chosen)[:, 0]
    if not len(others) or not bool(doubtful.any()):
        return scene if not bool(doubtful.any()) else scene.rows(~doubtful)
    nearest = cKDTree(means[others.cpu().numpy()]).query(means[doubtful.cpu().numpy()])[1]
    object_ids, confidence = scene.object_ids.clone(), scene.confidence.clone()
    object_ids[doubtful] = scene.object_ids[others[torch.from_numpy(nearest).to(others.device)]]
    confidence[doubtful] = 0
    return scene.changed(labels=GaussianLabels(object_ids, confidence))


def object_masks(scene: TrainedScene, camera: Camera) -> dict[int, np.ndarray]:
    """Return object id -> its visible pixels, bool [H, W], of every object seen from a camera."""
    found = segment_by_labels(scene.gaussians, scene.object_ids, camera)
    ids = torch.where(found.confidence > 0, found.object_ids, -1).cpu().numpy()
    return {int(object_id): ids == object_id for object_id in np.unique(ids) if object_id >= 0}


def best_views(scene: TrainedScene, cameras: Iterable[Camera]) -> dict[int, BestView]:
    """Return object id -> the camera that sees most pixels of it, and these pixels; unseen objects are absent."""
    best: dict[int, BestView] = {}
    for index, camera in enumerate(cameras):
        for object_id, mask in object_masks(scene, camera).items():
            if object_id not in best or mask.mean() > best[object_id].mask.mean():
                best[object_id] = BestView(index, mask)
    return best


def objects_like(scene: TrainedScene, object_id: int, *, top: int = 5) -> list[Found]:
    """Return the other objects by falling cosine between their mean features and those of `object_id`.

    Raises:
        UserError: No such object, or the scene has no features.
    """
    scene.mask([object_id])
    if not scene.gaussians.feature_dim:
        raise UserError(f"{scene.path}: has no features, so nothing is like anything; give a lifted model")
    values, slots = torch.unique(scene.object_ids, return_inverse=True)
    features = scene.gaussians.features.detach() * scene.confidence[:, None].clamp(min=1e-3)  # unseen ones hardly count
    sums = torch.zeros(len(values), features.shape[1], device=features.device).index_add_(0, slots, features)
    directions = torch.nn.functional.normalize(sums, dim=1)
    cosines = directions @ directions[int(torch.nonzero(values == object_id)[0, 0])]
    found = [Found(*pair) for pair in zip(values.tolist(), cosines.tolist(), strict=True) if pair[0] != object_id]
    return sorted(found, key=lambda one: -one.score)[:top]


def objects_in_mask(scene: TrainedScene, camera: Camera, mask: np.ndarray) -> list[Found]:
    """Return the objects that a mask bool [H, W] of a view touches, by falling IoU with their visible pixels."""
    found = []
    for object_id, own in object_masks(scene, camera).items():
        shared = (own & mask).sum()
        if shared:
            found.append(Found(object_id, float(shared / (own | mask).sum())))
    return sorted(found, key=lambda one: -one.score)


def objects_by_text(
    scene: TrainedScene, text: str, cameras: Sequence[Camera], encoder: TextEncoder, *, top: int = 5
) -> list[Found]:
    """Return the objects that words describe, by falling relevancy; those below 0.5 are left out.

    Every object is shown to the encoder in the view that shows most of it: cut out with its surroundings, and alone on
    grey. Its score is the relevancy of LERF (Eq. 2 there) of the mean of both: the smallest of softmax(10 x cosine)
    against each of "object", "things", "stuff", "texture".

    Args:
        scene: The scene.
        text: What is sought, such as "mug".
        cameras: Among which the best view is chosen.
        encoder: Usually CLIP.
        top: Most objects returned.
    """
    views = best_views(scene, cameras)
    pictures = [picture for _, pair in crops(scene, cameras, views) for picture in pair]
    if not pictures:
        return []
    images, texts = encoder.embed(pictures, (text, *CANONICAL_TEXTS))
    pooled = torch.nn.functional.normalize(images.view(len(views), 2, -1).mean(dim=1), dim=1)
    cosines = pooled @ texts.T  # [objects, 1 + canonical]
    relevancy = torch.sigmoid(_RELEVANCY_SCALE * (cosines[:, :1] - cosines[:, 1:])).min(dim=1).values
    found = [Found(*pair) for pair in zip(views, relevancy.tolist(), strict=True)]
    return sorted((one for one in found if one.score > MIN_RELEVANCY), key=lambda one: -one.score)[:top]


@torch.no_grad()
def crops(
    scene: TrainedScene, cameras: Sequence[Camera], views: dict[int, BestView]
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """Yield object id, and its cut-out of the rendering with and without what is around it, uint8 RGB."""
    rendered: dict[int, np.ndarray] = {}
    for object_id, view in views.items():
        if view.camera not in rendered:
            out = render(scene.gaussians, cameras[view.camera], background=scene.background, with_features=False)
            rendered[view.camera] = quantize_uint8(out.image.cpu()).numpy()
        image, box = rendered[view.camera], _box(view.mask)
        alone = np.where(view.mask[..., None], image, np.uint8(255 * _GREY))
        yield object_id, (image[box], alone[box])


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns of the box around a mask, widened by a margin."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    margin = max(1, round(_CROP_MARGIN * max(np.ptp(rows), np.ptp(columns))))
    return tuple(slice(max(0, line[0] - margin), line[-1] + margin + 1) for line in (rows, columns))


def _stray(points: np.ndarray, factor: float) -> np.ndarray:
    """Return which points [n, 3] lie in small parts about `factor` spacings away from everything else, bool [n]."""
    if len(points) <= _SPACING_NEIGHBOUR:
        return np.zeros(len(points), dtype=bool)
    spacing = float(np.median(cKDTree(points).query(points, k=_SPACING_NEIGHBOUR + 1)[0][:, -1]))
    # Cells that touch are linked instead of points: a large object has too many pairs of near points.
    size = max(factor * spacing / 2, 1e-9 * float(np.ptp(points)), 1e-12)
    cells, cell = np.unique(np.floor(points / size).astype(np.int64), axis=0, return_inverse=True)
    pairs = cKDTree(cells).query_pairs(1, p=np.inf, output_type="ndarray")
    links = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(cells),) * 2)
    part = connected_components(links, directed=False)[1][cell.ravel()]
    return (np.bincount(part) < _MIN_PART_SHARE * len(points))[part]
