"""What the photos tell of an object's surroundings: parts around it, its hull, which Gaussians they show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from unified_lift.fileio import read_json
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import blending_weights, render
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.outputs import EXPOSURE_FILE
from unified_lift.ops.cameras import project
from unified_lift.train.exposure.affine import apply as exposed
from unified_lift.types import Camera, View

_COVERS = 0.1  # alpha of the object alone, from which on a pixel is part of its outline
_SHOWS = 0.02  # share of a pixel's colour that is the object's, from which on the pixel does not count
_GROW = (2, 0.01)  # pixels and share of the width, of which the larger is what silhouettes are grown by
_MARGIN = 0.25  # of the object's size in a photo: what is around it in its part of the photo
_MAX_OUTSIDE = 0.05  # share of the photos in which a point of the hull may lie outside of the outline: masks err
_MAX_HULL_PHOTOS = 64  # that the hull is made of: more make it no smaller
_REACH = 0.15  # of the object's size: Gaussians of the surroundings that are so near are trained too
_STALE = 0.12  # mean difference of a 5 x 5 window between photo and edited scene, above which the photo shows the past


@dataclass(frozen=True, kw_only=True)
class Photo:
    """The part of a training photo around the object."""

    whole: Camera  # of the photo
    camera: Camera  # of the part
    image: Tensor  # uint8 [h, w, 3]
    valid: Tensor  # where it shows what is not removed, bool [h, w]
    outline: np.ndarray  # of the photo: what the object covers if nothing stands before it, grown, bool [H, W]
    depth: np.ndarray  # of the scene with the object, [h, w]
    exposure: Tensor | None  # colour matrix [3, 4] of the photo
    agrees: float  # share of the pixels without the object that show the scene as it is now


def extent(points: np.ndarray) -> float:
    """Return the diagonal of the box that holds 90 % of the points [n, 3] along each axis."""
    return max(float(np.linalg.norm(np.ptp(np.quantile(points, [0.05, 0.95], axis=0), axis=0))), 1e-9)


@torch.no_grad()
def photos_of(scene: TrainedScene, removed: Tensor, views: Sequence[View]) -> Iterator[Photo]:
    """Yield the parts of the photos that show the object."""
    alone, device = scene.subset(removed).gaussians, scene.gaussians.device
    marked = scene.gaussians.like(
        scene.gaussians.state_dict() | {"features": removed.float()[:, None]}, takes_over=True
    )
    path = scene.path / EXPOSURE_FILE
    exposures = read_json(path) if path.exists() else {}
    for view in views:
        whole, (grow, share) = view.camera, _GROW
        grow = max(grow, round(share * whole.width))
        outline = (render(alone, whole, with_features=False).alpha > _COVERS).cpu().numpy()
        if not outline.any():
            continue
        outline = ndimage.binary_dilation(outline, iterations=grow)
        (box,) = ndimage.find_objects(outline.astype(np.int8))
        margin = max(8, round(_MARGIN * max(part.stop - part.start for part in box)))
        rows, columns = (
            slice(max(0, part.start - margin), min(size, part.stop + margin))
            for part, size in zip(box, outline.shape, strict=True)
        )
        size = {"width": columns.stop - columns.start, "height": rows.stop - rows.start}
        camera = replace(whole, cx=whole.cx - columns.start, cy=whole.cy - rows.start, **size)
        out, image = render(marked, camera, background=scene.background), view.image[rows, columns]
        valid = ~ndimage.binary_dilation((out.features[..., 0] > _SHOWS).cpu().numpy(), iterations=grow)
        valid &= True if view.valid is None else view.valid[rows, columns].cpu().numpy()
        matrix = torch.tensor(exposures[view.name]).to(device).float() if view.name in exposures else None
        own = float(valid.sum())
        if scene.is_edited:
            now = out.image if matrix is None else exposed(matrix, out.image)
            error = (now.cpu() - image.cpu() / 255).abs().mean(dim=2).numpy()
            valid &= ndimage.uniform_filter(error, 5) < _STALE
        depth = torch.where(out.alpha > 0.5, out.depth / out.alpha.clamp(min=1e-6), 0.0)
        yield Photo(
            whole=whole,
            camera=camera,
            image=image.contiguous().to(device),
            valid=torch.from_numpy(valid).to(device),
            outline=outline,
            depth=depth.cpu().numpy(),
            exposure=matrix,
            agrees=float(valid.sum()) / max(own, 1.0),
        )


def pixels_of(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return which points [n, 3] lie in a picture, bool [n]; row, column and depth of those."""
    pixels, depth = project(points, camera)
    size = [camera.width, camera.height]
    framed = (depth > 0) & (pixels >= 0).all(axis=1) & (pixels < size).all(axis=1)
    columns, rows = pixels[framed].astype(np.int64).T
    return framed, rows, columns, depth[framed]


def in_hull(points: np.ndarray, photos: Sequence[Photo]) -> np.ndarray:
    """Return which points [n, 3] lie within the outlines of (nearly) all photos that frame them, bool [n]."""
    inside, total = np.zeros((2, len(points)), dtype=np.int64)
    for photo in photos[:: -(-len(photos) // _MAX_HULL_PHOTOS)]:
        framed, rows, columns, _ = pixels_of(points, photo.whole)
        total += framed
        inside[framed] += photo.outline[rows, columns]
    return (total > 0) & (total - inside <= _MAX_OUTSIDE * total)


def is_free(points: np.ndarray, photos: Sequence[Photo], tolerance: float) -> np.ndarray:
    """Return which points [n, 3] some photo looks through, by the depth of the scene with the object, bool [n]."""
    found = np.zeros(len(points), dtype=bool)
    for photo in photos[:: -(-len(photos) // _MAX_HULL_PHOTOS)]:
        framed, rows, columns, depth = pixels_of(points, photo.camera)
        found[framed] |= photo.depth[rows, columns] > depth + tolerance
    return found


def is_near(centres: np.ndarray, points: np.ndarray, photos: Sequence[Photo]) -> np.ndarray:
    """Return which Gaussians lie in the hull of the object, made of `points`, or close to one of these, bool [n]."""
    reach = _REACH * extent(points)
    return in_hull(centres, photos) | np.isfinite(cKDTree(points).query(centres, distance_upper_bound=reach)[0])


@torch.no_grad()
def shown_share(gaussians: Gaussians, photos: Sequence[Photo]) -> np.ndarray:
    """Return the share of each Gaussian's weight that lies in valid pixels of the photos' parts, 0 without any, [N]."""
    total, shown = torch.zeros(2, len(gaussians), device=gaussians.device)
    for photo in photos:
        found = blending_weights(gaussians, photo.camera)
        ids, counts = found.gaussian_ids.long(), found.offsets.diff()
        valid = photo.valid.flatten().repeat_interleave(counts, output_size=len(ids))
        total.index_add_(0, ids, found.weights)
        shown.index_add_(0, ids, found.weights * valid)
    return (shown / total.clamp(min=1e-12)).cpu().numpy()


def pixel_grid(camera: Camera) -> np.ndarray:
    """Return the centres of all pixels, row by row, [H * W, 2]."""
    rows, columns = np.indices((camera.height, camera.width)) + 0.5
    return np.column_stack([columns.ravel(), rows.ravel()])


def centres(scene: TrainedScene) -> np.ndarray:
    """Return the centres of the Gaussians, float64 [N, 3]."""
    return scene.gaussians.means.detach().cpu().double().numpy()
