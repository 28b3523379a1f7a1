"""A picture of the surface behind a removed object, continued where no photo shows it, the shadow gone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from unified_lift.editing.light import light_on
from unified_lift.editing.surroundings import Photo, centres, extent, in_hull, is_free, pixel_grid
from unified_lift.model.gaussians import SH_C0
from unified_lift.model.render import render
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.ops.cameras import project, unproject
from unified_lift.ops.inpaint import harmonic, similar_piece
from unified_lift.types import Camera

BLIND, SURE = 0.1, 0.3  # share of a Gaussian's weight that photos show: below it goes, from the second on it is known
_TOLERANCE = 0.1  # of the object's size: depths that differ by less are one surface
_KNOWN = 0.7  # of a pixel's alpha, made of Gaussians that are known: less is a hole
_MAX_SIDE = 64  # pixels of the object in the picture from above, so that a large one costs no more than a small one
_CONTEXT = 1.5  # of the object's size: how far around it that picture reaches
_WIDE = 5.0  # the same on a plane, of which pieces are copied
_RAY_SAMPLES = 48
_AROUND = 0.75  # of the object's size: how far from it a plane is sought
_DRAWS, _MAX_PLANE_POINTS = 1000, 6000
_BELOW, _ABOVE = 0.05, 0.4  # of the size: how deep in a plane, how high above it the lowest seen part may be
_REFINEMENTS = 8
_MIN_PLANE = 0.15  # share of the surroundings that must lie on the plane
_DARK = 0.3  # share of full light below which the material of a plane is not seen
_LIT = 0.5  # share of full light from which on a piece of a plane may be copied
_THICK = 0.15  # of the size: how far from a plane the Gaussians that are it may lie
_LYING = 0.9  # share of an object's Gaussians in a plane, from which on it lies there, as a rug
_FOOT = 0.06  # of the size: what is lower may as well be the plane's, and casts next to no shadow
_STANDING = 5.0  # of the size: how far away things may stand that hide light
TAKEN = 0.6  # share of the light that is left, below which it is the object that makes a place dark
_CONTEXTS = (0.5, 0.25)  # of the root of the hole's area: surroundings that a piece should be like, or else these
_COVERED = 0.2  # alpha of things that stand on the plane, from which on what lies there is not copied
_CRACKS = 3  # pixels: half the width of gaps in a plane that are too narrow to be things on it
_MAX_LIGHT_SIDE = 240  # pixels of the picture in which light is found
_SHADE = 0.97  # share of the light that is left, below which a shadow is worth removing


class Picture(NamedTuple):
    """A picture of the surface without the object, taken from where the hole is seen best."""

    camera: Camera
    colors: np.ndarray  # continued in the hole, [h, w, 3]
    depth: np.ndarray  # as well, [h, w]
    hole: np.ndarray  # bool [h, w]
    gain: np.ndarray  # by what the surface is brighter without the object, [h, w]
    owned: np.ndarray  # which Gaussians are the surface, and take hole and gain, bool [N]


class _Plane(NamedTuple):
    """A point of it, and its unit normal towards the cameras, each [3]."""

    point: np.ndarray
    normal: np.ndarray

    def height(self, points: np.ndarray) -> np.ndarray:
        return (points - self.point) @ self.normal


def picture_behind(
    rest: TrainedScene, gone: TrainedScene, shown: np.ndarray, photos: Sequence[Photo], *, shadow: bool, seed: int
) -> Picture:
    """Return the picture of what is behind `gone`: of the plane it stands on, or, if none is found, along rays.

    `shown` is the share of each Gaussian's weight that photos show, [N]; without `shadow` the light stays as it is.
    """
    points = centres(gone)
    plane = _plane_under(points, photos, np.random.default_rng(seed))
    return (
        _along_rays(rest, shown, points, photos)
        if plane is None
        else _on_plane(rest, gone, shown, photos, plane, shadow)
    )


def _plane_under(points: np.ndarray, photos: Sequence[Photo], rng: np.random.Generator) -> _Plane | None:
    """Return the plane that holds most of what photos show around the points and on which these stand.

    Source: RANSAC [Fischler, Bolles 1981], then least squares on what is near.
    """
    seen = []
    for photo in photos:
        use = photo.valid.cpu().numpy() & (photo.depth > 0)
        seen.append(unproject(pixel_grid(photo.camera)[use.ravel()], photo.depth[use], photo.camera))
    size, around = extent(points), np.concatenate(seen)
    around = around[rng.permutation(len(around))[: 20 * _MAX_PLANE_POINTS]]
    around = around[cKDTree(points).query(around, distance_upper_bound=_AROUND * size)[0] < np.inf][:_MAX_PLANE_POINTS]
    if len(around) < 3:
        return None
    eyes, tolerance = np.stack([photo.whole.position for photo in photos]), 0.04 * size
    best, found = _MIN_PLANE * len(around), None
    for first, *others in around[rng.integers(len(around), size=(_DRAWS, 3))]:
        normal = np.cross(others[0] - first, others[1] - first)
        if (length := float(np.linalg.norm(normal))) > 1e-9 * size**2:
            plane = _Plane(first, normal / length * np.sign(np.median((eyes - first) @ normal) or 1.0))
            count = (np.abs(plane.height(around)) < tolerance).sum()
            if count > best and -_BELOW * size < np.quantile(plane.height(points), 0.05) < _ABOVE * size:
                best, found = count, plane
    for _ in range(_REFINEMENTS):
        if found is None:
            break
        near = around[np.abs(found.height(around)) < tolerance / 2]
        normal = np.linalg.svd(near - near.mean(axis=0), full_matrices=False)[2][2]
        found = _Plane(near.mean(axis=0), normal * np.sign(normal @ found.normal))
    return found


def _on_plane(
    rest: TrainedScene, gone: TrainedScene, shown: np.ndarray, photos: Sequence[Photo], plane: _Plane, shadow: bool
) -> Picture:
    points, places, ids = centres(gone), centres(rest), rest.object_ids.cpu().numpy()
    size, height = extent(points), plane.height(places)
    flat = np.abs(height) < _THICK * size
    close = flat & (cKDTree(points).query(places, distance_upper_bound=size)[0] < np.inf)
    main = np.bincount(ids[close]).argmax() if close.any() else -1
    lying = [i for i in np.unique(ids) if i == main or flat[ids == i].mean() > _LYING]
    is_surface = np.isin(ids, lying)
    camera = _camera_towards(points - plane.height(points)[:, None] * plane.normal, photos, plane.normal, _WIDE)
    shape = (camera.height, camera.width)
    rays = unproject(pixel_grid(camera), np.ones(shape[0] * shape[1]), camera) - camera.position
    spots = camera.position + rays * (plane.height(camera.position) / -(rays @ plane.normal))[:, None]
    trust = np.clip((shown - BLIND) / (SURE - BLIND), 0, 1) * (is_surface & flat)
    colors, alpha, _ = _blended(rest, trust, camera)
    known, grid = alpha > _KNOWN, spots.reshape(*shape, 3)
    near = np.linalg.norm(places - spots.mean(axis=0), axis=1) < _STANDING * size
    standing = rest.subset(torch.from_numpy((height > _FOOT * size) & ~is_surface & near))
    before = after = np.ones(shape)
    if shadow:
        step = -(-max(shape) // _MAX_LIGHT_SIDE)
        coarse = np.s_[step // 2 :: step, step // 2 :: step]
        above = gone.subset(torch.from_numpy(plane.height(points) > _FOOT * size))
        tables = standing.gaussians, above.gaussians
        light = light_on(colors.mean(axis=2)[coarse], known[coarse], grid[coarse], plane.normal, *tables)
        if light is not None:
            at = (np.indices(shape) - step // 2) / step
            before, after = (ndimage.map_coordinates(one, at, order=1, mode="nearest") for one in light)
    ratio = before / np.maximum(after, 1e-3)
    material = ndimage.binary_erosion(known & (before > _DARK))
    hull = ndimage.binary_dilation(in_hull(spots, photos).reshape(shape), iterations=3)
    hole = ~material & (hull | (known & (ratio < TAKEN))) & ~is_free(spots, photos, _TOLERANCE * size).reshape(shape)
    hole = ndimage.binary_closing(np.pad(hole, 8), iterations=_CRACKS)[8:-8, 8:-8] | hole
    albedo = colors / np.maximum(before, _DARK)[..., None]
    albedo = harmonic(albedo, ~material | hole)
    covered = _blended(standing, np.ones(len(standing)), camera)[1] > _COVERED
    copied = (
        ndimage.binary_closing(material & (before > _LIT), iterations=_CRACKS)
        & ~covered
        & ~ndimage.binary_dilation(hole)
    )
    for share in _CONTEXTS:
        if (patched := similar_piece(albedo, copied, hole, max(4.0, share * float(hole.sum()) ** 0.5))) is not None:
            albedo = patched
            break
    colors = np.where(hole[..., None], albedo * after[..., None], colors).clip(0, 1)
    gain = np.where(ratio < _SHADE, 1 / ratio.clip(_DARK, 1), 1.0)
    return Picture(camera, colors, project(spots, camera)[1].reshape(shape), hole, gain, is_surface & flat)


@torch.no_grad()
def _blended(rest: TrainedScene, weight: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return colour [h, w, 3], alpha and mean depth [h, w] of Gaussians whose features count by their weight [N]."""
    table, device = rest.gaussians.state_dict(), rest.gaussians.device
    trust, z = (
        torch.from_numpy(one).float().to(device)[:, None] for one in (weight, project(centres(rest), camera)[1])
    )
    values = torch.cat([table["sh0"][:, 0] * SH_C0 + 0.5, z, torch.ones_like(z)], dim=1) * trust
    chosen = trust[:, 0] > 0
    seen = rest.gaussians.like({key: one[chosen] for key, one in (table | {"features": values}).items()})
    blended = render(seen, camera).features.cpu().double().numpy()
    alpha = np.maximum(blended[..., 4], 1e-6)
    return blended[..., :3].clip(0) / alpha[..., None], alpha, blended[..., 3] / alpha


def _along_rays(rest: TrainedScene, shown: np.ndarray, points: np.ndarray, photos: Sequence[Photo]) -> Picture:
    """Return the picture from the mean direction of the photos; depth and colours are continued harmonically.

    A ray through the hull ends in a hole where no known surface follows the hull within the tolerance, unless a photo
    sees that the space behind it is empty.
    """
    offsets = np.stack([photo.whole.position for photo in photos]) - np.median(points, axis=0)
    away = (offsets / np.linalg.norm(offsets, axis=1, keepdims=True)).mean(axis=0)
    if np.linalg.norm(away) < 0.2:  # seen from all around: no direction is the mean one
        away = offsets[np.argmax([photo.outline.sum() for photo in photos])]
    camera, size = _camera_towards(points, photos, away, _CONTEXT), extent(points)
    deep = project(points, camera)[1]
    first, last = float(np.quantile(deep, 0.02)) - 0.1 * size, float(np.quantile(deep, 0.98)) + 0.5 * size
    distance = project(centres(rest), camera)[1]
    trust = np.clip((shown - BLIND) / (SURE - BLIND), 0, 1) * (distance > first)
    colors, alpha, depth = _blended(rest, trust, camera)
    depth = np.where(alpha > _KNOWN, depth, np.inf)
    samples = np.linspace(first, last, _RAY_SAMPLES)
    pixels = pixel_grid(camera)
    rays = unproject(np.repeat(pixels, len(samples), axis=0), np.tile(samples, len(pixels)), camera)
    inside = in_hull(rays, photos)
    met = inside.reshape(len(pixels), -1)
    through = np.logical_or.reduce(met, axis=1)
    end = np.where(through, samples[len(samples) - 1 - met[:, ::-1].argmax(axis=1)], -np.inf)
    behind = (samples > end[:, None]) & (samples < depth.ravel()[:, None]) & through[:, None]
    free = np.zeros(behind.size, dtype=bool)
    free[behind.ravel()] = is_free(rays[behind.ravel()], photos, _TOLERANCE * size)
    is_open = free.reshape(behind.shape).any(axis=1) & np.isfinite(depth.ravel())
    hole = through & ~is_open & (depth.ravel() > end + _TOLERANCE * size)
    hole = hole.reshape(depth.shape)
    unknown = ~np.isfinite(depth) | hole
    nearness = harmonic(1 / np.where(np.isfinite(depth), depth, 1.0)[..., None], unknown)[..., 0]
    depth = np.where(hole, 1 / np.maximum(nearness, 1e-9), depth)
    colors = np.where(hole[..., None], harmonic(colors, unknown), colors).clip(0, 1)
    return Picture(camera, colors, depth, hole, np.ones_like(depth), np.zeros(len(rest), dtype=bool))


def _camera_towards(points: np.ndarray, photos: Sequence[Photo], away: np.ndarray, context: float) -> Camera:
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
    margin = context * (high - low).max() + 4 / shrink
    low, high = np.floor(shrink * (low - margin)), np.ceil(shrink * (high + margin))
    width, height = (high - low).astype(int).tolist()
    size = {"cx": -float(low[0]), "cy": -float(low[1]), "width": width, "height": height}
    return replace(camera, fx=shrink * focal, fy=shrink * focal, **size)


def world_of(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Return the points that the pixels show, [H * W, 3]; of infinite depths some far point."""
    return unproject(pixel_grid(camera), np.where(np.isfinite(depth), depth, 1e9).ravel(), camera)
