"""What is behind a removed object: its surroundings trained again, on the photos without the object's pixels.

Where a photo shows what is behind, that is learnt. Where none does (as under its foot), the surface around is
continued; where the object darkened it, it is lit again. Labels tell so.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from unified_lift.editing.support import BLIND, SURE, TAKEN, Picture, picture_behind, world_of
from unified_lift.editing.surroundings import Photo, centres, extent, is_near, photos_of, pixels_of, shown_share
from unified_lift.errors import UserError
from unified_lift.kernels.photometric import photometric_loss
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.model.render import points_seen, render
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import INVENTED, RELIT, RETRAINED, GaussianLabels
from unified_lift.ops.cameras import project
from unified_lift.progress import progress_bar
from unified_lift.train.exposure.affine import apply as exposed
from unified_lift.train.geometry import log_linear, rates_of
from unified_lift.train.optim import NamedAdam
from unified_lift.train.views import ViewOrder
from unified_lift.types import View

NUM_STEPS = 300  # a step is the part of a photo around the object
_MIN_AGREES = 0.5  # share of the pixels around the object that must show the scene as it is, edits included
_LIFT = 0.9  # opacity of new Gaussians
_DISC = (0.7, 0.7, 0.1)  # their size in pixels: neighbours close the gaps, and rays at a slant meet them where they lie
_FINAL_RATES = 0.1  # share of the rates of the training to which they fall
_GRAZING = 0.1  # sine of the angle between ray and surface, below which where they meet is not known
_ON = 0.1  # of the object's size: how far from the surface a pixel's point may be to be on it


def fill(
    scene: TrainedScene, removed: Tensor, views: Sequence[View], *, shadow: bool = True, quiet: bool = False
) -> TrainedScene:
    """Return a scene without the Gaussians `removed`, bool [N], its surroundings trained on photos to close the hole.

    With `shadow` the plane on which the object stands is lit as it would be without the object. Only Gaussians in and
    close to the object's hull, and those lit again, change. Those that are new, lit or trained again are marked in the
    labels: RETRAINED where photos show them, RELIT where these were darker, INVENTED where none shows them or what it
    shows is nearly black; these have confidence 0. Nothing random but the order of photos and the search for the plane,
    which the seed of the training gives, so that a CPU repeats it to the bit.

    A UserError: no photo shows the object, or photos and scene have no longer much in common.
    """
    photos, seed = list(photos_of(scene, removed, views)), scene.settings.seed
    if not photos:
        raise UserError(f"{scene.path}: no photo shows the object, so nothing tells what is behind; leave fill out")
    if np.mean([photo.agrees for photo in photos]) < _MIN_AGREES:
        raise UserError(f"{scene.path}: the photos no longer show this scene; fill first, then move or paint")
    rest, gone = scene.subset(~removed), scene.subset(removed)
    points = centres(gone)
    near, shown = is_near(centres(rest), points, photos), shown_share(rest.gaussians, photos)
    keep = ~(near & (shown < BLIND))
    rest, near, shown = rest.subset(torch.from_numpy(keep)), near[keep], shown[keep]
    picture = picture_behind(rest, gone, shown, photos, shadow=shadow, seed=seed)
    gain, keep = _light_again(rest, picture)
    rest, near, shown, gain = rest.subset(torch.from_numpy(keep)), near[keep], shown[keep], gain[keep]
    rest = replace(rest, gaussians=_brighter(rest.gaussians, torch.from_numpy(gain)))
    filled, num_new = _with_seeds(rest, shown, picture)
    relit = torch.from_numpy(np.append(gain != 1, np.zeros(num_new, dtype=bool))).to(removed.device)
    changed = torch.from_numpy(np.append(near, np.ones(num_new, dtype=bool))).to(removed.device) | relit
    lit = [_as_lit(photo, filled.gaussians, picture, tolerance=_ON * extent(points)) for photo in photos]
    photos = [replace(photo, valid=photo.valid | invented) for photo, invented in lit]
    gaussians = _trained(filled, changed, photos, seed=seed, quiet=quiet)
    show = [replace(photo, valid=photo.valid & ~invented) for photo, invented in lit]
    unseen = torch.from_numpy(shown_share(gaussians, show) < BLIND).to(removed.device)
    marks = torch.where(unseen, INVENTED, torch.where(relit, RELIT, RETRAINED))
    marks = torch.where(changed, marks, filled.require_labels().marks)
    confidence = torch.where(changed & unseen, 0.0, filled.confidence)
    labels = GaussianLabels(filled.object_ids, confidence, filled=marks.to(torch.uint8))
    return replace(filled, gaussians=gaussians, labels=labels)


def _light_again(rest: TrainedScene, picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Return by what Gaussians of the surface are brighter without the object, [N], and which stay, bool [N]."""
    gain, keep = np.ones(len(rest)), np.ones(len(rest), dtype=bool)
    framed, rows, columns, _ = pixels_of(centres(rest), picture.camera)
    gain[framed], keep[framed] = picture.gain[rows, columns], ~picture.hole[rows, columns]
    return np.where(picture.owned, gain, 1.0), keep | ~picture.owned


def _brighter(gaussians: Gaussians, gain: Tensor) -> Gaussians:
    """Return Gaussians with their colours multiplied by `gain`, [N]."""
    table = gaussians.state_dict()
    factor = gain.float().to(gaussians.device)[:, None, None]
    sh0 = table["sh0"] * factor + (factor - 1) * (0.5 / SH_C0)
    return gaussians.like(table | {"sh0": torch.where(factor == 1, table["sh0"], sh0), "shN": table["shN"] * factor})


@torch.no_grad()
def _as_lit(photo: Photo, gaussians: Gaussians, picture: Picture, *, tolerance: float) -> tuple[Photo, Tensor]:
    """Return the part of a photo as it would be without the object, and which pixels of it are invented, bool [h, w]:
    those of the hole which it does not show, or too dark to tell what is there."""
    out = render(gaussians, photo.camera, with_features=False)
    points = points_seen(out, photo.camera).cpu().double().numpy()
    at, depth = project(points, picture.camera)
    inside = (at >= 0).all(axis=1) & (at < [picture.camera.width, picture.camera.height]).all(axis=1)

    def looked_up(one: np.ndarray, order: int = 1) -> np.ndarray:
        return ndimage.map_coordinates(one.astype(float), at.T[::-1] - 0.5, order=order, mode="nearest")

    off = looked_up(picture.depth, 0) - depth
    on = inside & (np.abs(off) < tolerance) & (out.alpha > 0.5).cpu().numpy().ravel()
    # Blended depths lie before a surface that is seen at a slant: what a pixel shows is where its ray meets it.
    rays = points - photo.camera.position
    rise = rays @ picture.camera.cam_from_world[2, :3]
    moved = on & (np.abs(rise) > _GRAZING * np.linalg.norm(rays, axis=1))
    points[moved] += rays[moved] * (off / rise)[moved, None]
    at = project(points, picture.camera)[0]
    gain = np.where(on, looked_up(picture.gain, 0), 1.0)
    unknown = ~photo.valid.cpu().numpy().ravel() | (gain > 1 / TAKEN)
    invented = on & (looked_up(picture.hole, 0) > 0.5) & unknown
    colors = torch.from_numpy(np.stack([looked_up(one) for one in np.moveaxis(picture.colors, 2, 0)], axis=1)).float()
    shape, device = photo.image.shape, photo.image.device
    colors = colors.view(shape).to(device)
    colors = colors if photo.exposure is None else exposed(photo.exposure, colors)
    place, factor = (torch.from_numpy(one).to(device).view(*shape[:2]) for one in (invented, gain))
    image = torch.where(place[..., None], 255 * colors, photo.image * factor.float()[..., None])
    return replace(photo, image=image.round().clamp(0, 255).to(torch.uint8)), place


def _with_seeds(rest: TrainedScene, shown: np.ndarray, surface: Picture) -> tuple[TrainedScene, int]:
    """Return the scene with a Gaussian for every pixel of the hole, of the nearest known one's object, and how many."""
    table, device = rest.gaussians.state_dict(), rest.gaussians.device
    chosen = np.flatnonzero(surface.hole)
    known = np.flatnonzero(shown >= SURE)
    if not len(chosen) or not len(known):
        return rest, 0
    points = world_of(surface.depth, surface.camera)
    places, normals = points[chosen], _normals(points.reshape(*surface.depth.shape, 3))[chosen]
    like = torch.from_numpy(known[cKDTree(centres(rest)[known]).query(places)[1]]).to(device)
    pitch = surface.depth.ravel()[chosen] / surface.camera.fx

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).float().to(device)

    new = {name: value[like] for name, value in table.items()} | {
        "means": tensor(places),
        "quats": tensor(_upright(normals)),
        "log_scales": tensor(np.log(pitch[:, None] * _DISC)),
        "logit_opacities": torch.full((len(chosen),), _LIFT, device=device).logit(),
        "sh0": tensor((surface.colors.reshape(-1, 3)[chosen] - 0.5) / SH_C0)[:, None],
        "shN": torch.zeros_like(table["shN"][like]),
    }
    both = {name: torch.cat([value, new[name]]) for name, value in table.items()}
    order = torch.cat([torch.arange(len(rest), device=device), like])
    return replace(rest.subset(order), gaussians=rest.gaussians.like(both)), len(chosen)


def _normals(points: np.ndarray) -> np.ndarray:
    """Return unit normals, of which the third component is not negative, of a surface given on a grid, [H * W, 3]."""
    normals = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=0)).reshape(-1, 3)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return np.where(normals[:, 2:] < 0, -normals, normals)


def _upright(normals: np.ndarray) -> np.ndarray:
    """Return quaternions wxyz, of any length, of rotations that take the z axis to unit normals, [n, 4]."""
    x, y, z = normals.T
    return np.column_stack([1 + z, -y, x, 0 * x])


def _trained(scene: TrainedScene, trained: Tensor, photos: Sequence[Photo], *, seed: int, quiet: bool) -> Gaussians:
    """Return the Gaussians after training those of `trained`, bool [N], on the photos."""
    gaussians, background = scene.gaussians.like(scene.gaussians.state_dict()), scene.background
    positions = np.stack([photo.whole.position for photo in photos])
    reach = float(np.linalg.norm(positions - positions.mean(axis=0), axis=1).max())
    rates = rates_of(scene.settings.geometry, reach or extent(centres(scene)))
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
