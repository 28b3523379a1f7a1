"""What is behind a removed object: its surroundings trained again, on the photos without the object's pixels.

Where a photo shows what is behind, that is learnt. Where none does (as under its foot), the surface around is
continued, and labels tell so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.fileio import read_json
from unified_lift.kernels.photometric import photometric_loss
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.model.render import blending_weights, render
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import INVENTED, RETRAINED, GaussianLabels
from unified_lift.modelfolder.outputs import EXPOSURE_FILE
from unified_lift.ops.cameras import project, unproject
from unified_lift.ops.inpaint import harmonic
from unified_lift.progress import progress_bar
from unified_lift.train.exposure.affine import apply as exposed
from unified_lift.train.geometry import log_linear, rates_of
from unified_lift.train.optim import NamedAdam
from unified_lift.train.views import ViewOrder
from unified_lift.types import Camera, View

NUM_STEPS = 300  # a step is the part of a photo around the object
_COVERS = 0.1  # alpha of the object alone, from which on a pixel is part of its outline
_SHOWS = 0.02  # share of a pixel's colour that is the object's, from which on the pixel does not count
_GROW = (2, 0.01)  # pixels and share of the width, of which the larger is what silhouettes are grown by
_MARGIN = 0.25  # of the object's size in a photo: what is around it in its part of the photo
_MAX_OUTSIDE = 0.05  # share of the photos in which a point of the hull may lie outside of the outline: masks err
_MAX_HULL_PHOTOS = 64  # that the hull is made of: more make it no smaller
_REACH = 0.15  # of the object's size: Gaussians of the surroundings that are so near are trained too
_BLIND, _SURE = 0.1, 0.3  # share of a Gaussian's weight that photos show: below it goes, from the second on it is known
_TOLERANCE = 0.1  # of the object's size: depths that differ by less are one surface
_KNOWN = 0.7  # of a pixel's alpha, made of Gaussians that are known: less is a hole
_MAX_SIDE = 64  # pixels of the object in the picture from above, so that a large one costs no more than a small one
_CONTEXT = 1.5  # of the object's size: how far around it that picture reaches
_RAY_SAMPLES = 48
_FLAT = 0.7  # share of the hole's surroundings on one plane, from which on the picture is taken at right angles to it
_STALE = 0.12  # mean difference of a 5 x 5 window between photo and edited scene, above which the photo shows the past
_MIN_AGREES = 0.5  # share of the pixels around the object that must show the scene as it is, edits included
_LIFT = 0.9  # opacity of new Gaussians
_FINAL_RATES = 0.1  # share of the rates of the training to which they fall


@dataclass(frozen=True, kw_only=True)
class _Photo:
    """The part of a training photo around the object."""

    whole: Camera  # of the photo
    camera: Camera  # of the part
    image: Tensor  # uint8 [h, w, 3]
    valid: Tensor  # where it shows what is not removed, bool [h, w]
    outline: np.ndarray  # of the photo: what the object covers if nothing stands before it, grown, bool [H, W]
    depth: np.ndarray  # of the scene with the object, [h, w]
    exposure: Tensor | None  # colour matrix [3, 4] of the photo
    agrees: float  # share of the pixels without the object that show the scene as it is now


class _Surface(NamedTuple):
    """A picture of the surroundings without the object, taken from where the hole is seen best."""

    camera: Camera
    colors: np.ndarray  # continued in the hole, [h, w, 3]
    depth: np.ndarray  # as well, [h, w]
    hole: np.ndarray  # bool [h, w]


def fill(scene: TrainedScene, removed: Tensor, views: Sequence[View], *, quiet: bool = False) -> TrainedScene:
    """Return a scene without the Gaussians `removed`, bool [N], its surroundings trained on photos to close the hole.

    Only Gaussians in and close to the object's hull change. Those that are new or trained again are marked in the
    labels: RETRAINED where photos show them, INVENTED where none does; these have confidence 0. Nothing random but the
    order of photos, which the seed of the training gives, so that a CPU repeats it to the bit.

    A UserError: no photo shows the object, or photos and scene have no longer much in common.
    """
    photos = list(_photos(scene, removed, views))
    if not photos:
        raise UserError(f"{scene.path}: no photo shows the object, so nothing tells what is behind; leave fill out")
    if np.mean([photo.agrees for photo in photos]) < _MIN_AGREES:
        raise UserError(f"{scene.path}: the photos no longer show this scene; fill first, then move or paint")
    rest, points = scene.subset(~removed), _centres(scene.subset(removed))
    near = _is_near(_centres(rest), points, photos)
    shown = _shown_share(rest.gaussians, photos)
    keep = torch.from_numpy(~(near & (shown < _BLIND)))
    rest, near, shown = rest.subset(keep), near[keep.numpy()], shown[keep.numpy()]
    surface = _surface(rest, shown, points, photos)
    filled, num_new = _with_seeds(rest, shown, surface)
    trained = torch.from_numpy(np.append(near, np.ones(num_new, dtype=bool))).to(removed.device)
    gaussians = _trained(filled, trained, photos, seed=scene.settings.seed, quiet=quiet)
    unseen = torch.from_numpy(_shown_share(gaussians, photos) < _BLIND).to(trained.device)
    marks = torch.where(trained, torch.where(unseen, INVENTED, RETRAINED), filled.require_labels().marks)
    confidence = torch.where(trained & unseen, 0.0, filled.confidence)
    labels = GaussianLabels(filled.object_ids, confidence, filled=marks.to(torch.uint8))
    return replace(filled, gaussians=gaussians, labels=labels)


def _centres(scene: TrainedScene) -> np.ndarray:
    return scene.gaussians.means.detach().cpu().double().numpy()


def _extent(points: np.ndarray) -> float:
    """Return the diagonal of the box that holds 90 % of the points [n, 3] along each axis."""
    return max(float(np.linalg.norm(np.ptp(np.quantile(points, [0.05, 0.95], axis=0), axis=0))), 1e-9)


@torch.no_grad()
def _photos(scene: TrainedScene, removed: Tensor, views: Sequence[View]) -> Iterator[_Photo]:
    """Yield the parts of the photos that show the object."""
    alone, device = scene.subset(removed).gaussians, scene.gaussians.device
    marked = scene.gaussians.like(scene.gaussians.state_dict() | {"features": removed.float()[:, None]})
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
        yield _Photo(
            whole=whole,
            camera=camera,
            image=image.contiguous().to(device),
            valid=torch.from_numpy(valid).to(device),
            outline=outline,
            depth=depth.cpu().numpy(),
            exposure=matrix,
            agrees=float(valid.sum()) / max(own, 1.0),
        )


def _pixels_of(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return which points [n, 3] lie in a picture, bool [n]; row, column and depth of those."""
    pixels, depth = project(points, camera)
    size = [camera.width, camera.height]
    framed = (depth > 0) & (pixels >= 0).all(axis=1) & (pixels < size).all(axis=1)
    columns, rows = pixels[framed].astype(np.int64).T
    return framed, rows, columns, depth[framed]


def _in_hull(points: np.ndarray, photos: Sequence[_Photo]) -> np.ndarray:
    """Return which points [n, 3] lie within the outlines of (nearly) all photos that frame them, bool [n]."""
    inside, total = np.zeros((2, len(points)), dtype=np.int64)
    for photo in photos[:: -(-len(photos) // _MAX_HULL_PHOTOS)]:
        framed, rows, columns, _ = _pixels_of(points, photo.whole)
        total += framed
        inside[framed] += photo.outline[rows, columns]
    return (total > 0) & (total - inside <= _MAX_OUTSIDE * total)


def _is_free(points: np.ndarray, photos: Sequence[_Photo], tolerance: float) -> np.ndarray:
    """Return which points [n, 3] some photo looks through, by the depth of the scene with the object, bool [n]."""
    found = np.zeros(len(points), dtype=bool)
    for photo in photos[:: -(-len(photos) // _MAX_HULL_PHOTOS)]:
        framed, rows, columns, depth = _pixels_of(points, photo.camera)
        found[framed] |= photo.depth[rows, columns] > depth + tolerance
    return found


def _is_near(centres: np.ndarray, points: np.ndarray, photos: Sequence[_Photo]) -> np.ndarray:
    """Return which Gaussians lie in the hull of the object, made of `points`, or close to one of these, bool [n]."""
    reach = _REACH * _extent(points)
    return _in_hull(centres, photos) | np.isfinite(cKDTree(points).query(centres, distance_upper_bound=reach)[0])


@torch.no_grad()
def _shown_share(gaussians: Gaussians, photos: Sequence[_Photo]) -> np.ndarray:
    """Return the share of each Gaussian's weight that lies in valid pixels of the photos' parts, 0 without any, [N]."""
    total, shown = torch.zeros(2, len(gaussians), device=gaussians.device)
    for photo in photos:
        found = blending_weights(gaussians, photo.camera)
        ids, counts = found.gaussian_ids.long(), found.offsets.diff()
        valid = photo.valid.flatten().repeat_interleave(counts, output_size=len(ids))
        total.index_add_(0, ids, found.weights)
        shown.index_add_(0, ids, found.weights * valid)
    return (shown / total.clamp(min=1e-12)).cpu().numpy()


def _camera_towards(points: np.ndarray, photos: Sequence[_Photo], away: np.ndarray) -> Camera:
    """Return a camera as the photos have it that looks at the points [n, 3] from the direction `away`, [3]."""
    centre = np.median(points, axis=0)
    distance = float(np.median([np.linalg.norm(photo.whole.position - centre) for photo in photos]))
    forward = -away / np.linalg.norm(away)
    right = np.cross(forward, np.eye(3)[np.abs(forward).argmin()])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ (centre - distance * forward)
    focal = float(np.median([photo.whole.fx for photo in photos]))
    camera = Camera(cam_from_world=pose, fx=focal, fy=focal, cx=0.0, cy=0.0, width=1, height=1)
    low, high = np.quantile(project(points, camera)[0], [0.02, 0.98], axis=0)
    shrink = min(1.0, _MAX_SIDE / float((high - low).max()))
    margin = _CONTEXT * (high - low).max() + 4 / shrink
    low, high = np.floor(shrink * (low - margin)), np.ceil(shrink * (high + margin))
    width, height = (high - low).astype(int).tolist()
    size = {"cx": -float(low[0]), "cy": -float(low[1]), "width": width, "height": height}
    return replace(camera, fx=shrink * focal, fy=shrink * focal, **size)


def _surface(rest: TrainedScene, shown: np.ndarray, points: np.ndarray, photos: Sequence[_Photo]) -> _Surface:
    """Return the picture of the surroundings, the hole continued; taken from the mean direction of the photos first,
    then at right angles to the plane around the hole, if there is one."""
    offsets = np.stack([photo.whole.position for photo in photos]) - np.median(points, axis=0)
    away = (offsets / np.linalg.norm(offsets, axis=1, keepdims=True)).mean(axis=0)
    if np.linalg.norm(away) < 0.2:  # seen from all around: no direction is the mean one
        away = offsets[np.argmax([photo.outline.sum() for photo in photos])]
    tolerance = _TOLERANCE * _extent(points)
    found = _look(rest, shown, points, photos, away)
    plane = _plane_around(found, points, photos)
    if plane is not None and plane[2] >= _FLAT:
        found = _look(rest, shown, points, photos, plane[1])
        plane = _plane_around(found, points, photos)
    camera, colors, depth, hole = found
    unknown = ~np.isfinite(depth) | hole
    if plane is not None:
        height = ((_world(depth, camera) - plane[0]) @ plane[1]).reshape(hole.shape)
        stands = ~unknown & (height > tolerance)
        unknown |= ndimage.binary_dilation(stands, iterations=2) & ~hole
    nearness = harmonic(1 / np.where(np.isfinite(depth), depth, 1.0)[..., None], unknown)[..., 0]
    depth = np.where(hole, 1 / np.maximum(nearness, 1e-9), depth)
    return found._replace(colors=np.where(hole[..., None], harmonic(colors, unknown), colors).clip(0, 1), depth=depth)


@torch.no_grad()
def _look(
    rest: TrainedScene, shown: np.ndarray, points: np.ndarray, photos: Sequence[_Photo], away: np.ndarray
) -> _Surface:
    """Return what is known of the surroundings from a direction; depth is infinite where nothing is, nothing continued.

    A ray through the hull ends in a hole where no known surface follows the hull within the tolerance, unless a photo
    sees that the space behind it is empty.
    """
    camera, size = _camera_towards(points, photos, away), _extent(points)
    deep = project(points, camera)[1]
    first, last = float(np.quantile(deep, 0.02)) - 0.1 * size, float(np.quantile(deep, 0.98)) + 0.5 * size
    distance = project(_centres(rest), camera)[1]
    trust = np.clip((shown - _BLIND) / (_SURE - _BLIND), 0, 1) * (distance > first)
    table, device = rest.gaussians.state_dict(), rest.gaussians.device
    weight, z = (torch.from_numpy(one).float().to(device)[:, None] for one in (trust, distance))
    values = torch.cat([table["sh0"][:, 0] * SH_C0 + 0.5, z, torch.ones_like(z)], dim=1) * weight
    chosen = weight[:, 0] > 0
    seen = rest.gaussians.like({key: one[chosen] for key, one in (table | {"features": values}).items()})
    blended = render(seen, camera).features.cpu().double().numpy()
    alpha = np.maximum(blended[..., 4], 1e-6)
    depth = np.where(alpha > _KNOWN, blended[..., 3] / alpha, np.inf)
    samples = np.linspace(first, last, _RAY_SAMPLES)
    pixels = _pixel_grid(camera)
    rays = unproject(np.repeat(pixels, len(samples), axis=0), np.tile(samples, len(pixels)), camera)
    inside = _in_hull(rays, photos)
    met = inside.reshape(len(pixels), -1)
    through = np.logical_or.reduce(met, axis=1)
    end = np.where(through, samples[len(samples) - 1 - met[:, ::-1].argmax(axis=1)], -np.inf)
    behind = (samples > end[:, None]) & (samples < depth.ravel()[:, None]) & through[:, None]
    free = np.zeros(behind.size, dtype=bool)
    free[behind.ravel()] = _is_free(rays[behind.ravel()], photos, _TOLERANCE * size)
    is_open = free.reshape(behind.shape).any(axis=1) & np.isfinite(depth.ravel())
    hole = through & ~is_open & (depth.ravel() > end + _TOLERANCE * size)
    return _Surface(camera, blended[..., :3].clip(0) / alpha[..., None], depth, hole.reshape(depth.shape))


def _pixel_grid(camera: Camera) -> np.ndarray:
    """Return the centres of all pixels, row by row, [H * W, 2]."""
    rows, columns = np.indices((camera.height, camera.width)) + 0.5
    return np.column_stack([columns.ravel(), rows.ravel()])


def _world(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Return the points that the pixels show, [H * W, 3]; of infinite depths some far point."""
    return unproject(_pixel_grid(camera), np.where(np.isfinite(depth), depth, 1e9).ravel(), camera)


def _plane_around(
    found: _Surface, points: np.ndarray, photos: Sequence[_Photo]
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Return point and normal [3], towards the camera, of the plane around a hole, and the share that lies on it.

    Source: least absolute distances by reweighting. None: no hole, or too little around it.
    """
    hole, depth = found.hole, found.depth
    width = max(4, round(0.25 * float(hole.sum()) ** 0.5))
    ring = ndimage.binary_dilation(hole, iterations=width) & ~hole & np.isfinite(depth)
    surroundings = _world(depth, found.camera)[ring.ravel()]
    surroundings = surroundings[_is_near(surroundings, points, photos)]
    if len(surroundings) < 3:
        return None
    points, tolerance = surroundings, _TOLERANCE * _extent(points)
    weights = np.ones(len(points))
    for _ in range(30):
        point = (weights[:, None] * points).sum(axis=0) / weights.sum()
        normal = np.linalg.svd((points - point) * weights[:, None] ** 0.5, full_matrices=False)[2][2]
        weights = 1 / np.maximum(np.abs((points - point) @ normal), 0.1 * tolerance)
    normal = normal if normal @ (found.camera.position - point) > 0 else -normal
    return point, normal, float((np.abs((points - point) @ normal) < tolerance).mean())


def _with_seeds(rest: TrainedScene, shown: np.ndarray, surface: _Surface) -> tuple[TrainedScene, int]:
    """Return the scene with a Gaussian for every pixel of the hole, of the nearest known one's object, and how many."""
    table, device = rest.gaussians.state_dict(), rest.gaussians.device
    chosen = np.flatnonzero(surface.hole)
    known = np.flatnonzero(shown >= _SURE)
    if not len(chosen) or not len(known):
        return rest, 0
    places = _world(surface.depth, surface.camera)[chosen]
    like = torch.from_numpy(known[cKDTree(_centres(rest)[known]).query(places)[1]]).to(device)
    pitch = surface.depth.ravel()[chosen] / surface.camera.fx

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).float().to(device)

    new = {name: value[like] for name, value in table.items()} | {
        "means": tensor(places),
        "quats": tensor(np.tile([1.0, 0.0, 0.0, 0.0], (len(chosen), 1))),
        "log_scales": tensor(np.log(0.7 * pitch)[:, None].repeat(3, axis=1)),  # neighbours close the gaps
        "logit_opacities": torch.full((len(chosen),), _LIFT, device=device).logit(),
        "sh0": tensor((surface.colors.reshape(-1, 3)[chosen] - 0.5) / SH_C0)[:, None],
        "shN": torch.zeros_like(table["shN"][like]),
    }
    both = {name: torch.cat([value, new[name]]) for name, value in table.items()}
    order = torch.cat([torch.arange(len(rest), device=device), like])
    return replace(rest.subset(order), gaussians=rest.gaussians.like(both)), len(chosen)


def _trained(scene: TrainedScene, trained: Tensor, photos: Sequence[_Photo], *, seed: int, quiet: bool) -> Gaussians:
    """Return the Gaussians after training those of `trained`, bool [N], on the photos."""
    gaussians, background = scene.gaussians.like(scene.gaussians.state_dict()), scene.background
    positions = np.stack([photo.whole.position for photo in photos])
    reach = float(np.linalg.norm(positions - positions.mean(axis=0), axis=1).max())
    rates = rates_of(scene.settings.geometry, reach or _extent(_centres(scene)))
    share, order, adam = scene.settings.geometry.lambda_dssim, ViewOrder(len(photos), seed=seed), NamedAdam(eps=1e-15)
    factor = trained.float()
    with progress_bar("fill", quiet=quiet) as move:
        for step in range(NUM_STEPS):
            photo = photos[order.next_index()]
            image = render(gaussians, photo.camera, background=background, with_features=False).image
            image = image if photo.exposure is None else exposed(photo.exposure, image)
            loss = photometric_loss(image, photo.image, lambda_dssim=share, valid=photo.valid)
            gaussians.zero_grad()
            loss.backward()
            for _, value in gaussians:  # without gradient and moments Adam leaves a row as it is, to the bit
                if value.grad is not None:
                    value.grad.mul_(factor.view(-1, *[1] * (value.ndim - 1)))
            fall = log_linear(1.0, _FINAL_RATES, step / NUM_STEPS)
            adam.step(gaussians.table, {name: fall * rate for name, rate in rates.items()})
            move(step + 1, NUM_STEPS)
    gaussians.zero_grad()
    return gaussians
