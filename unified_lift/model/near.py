"""Which of many Gaussians a view may show: to a view of a building most of it is nothing."""

import math
from collections.abc import Sequence

import torch
from diff_gaussian_rasterization import PixelWeights, pixel_weights
from diff_gaussian_rasterization.types import FRUSTUM_MARGIN
from torch import Tensor

from unified_lift.memory import available_memory
from unified_lift.model.gaussians import Gaussians, Shown
from unified_lift.ops.blocks import Blocks
from unified_lift.types import Camera

_REACH = 3.4  # standard deviations: farther out even an opaque Gaussian is below 1/255, sqrt(2 ln 255) = 3.33
_MARGIN = 4.0  # pixels: what the low-pass adds, and rounding
_MOST = 0.75  # of the blocks: with more it is cheaper to look at all
_KEPT, _MOST_KEPT, _SHARE = 2**32, 2**34, 0.1  # bytes of what is remembered of all views, by what is free


def remember_views(gaussians: Gaussians, cameras: Sequence[Camera]) -> None:
    """Let many frozen Gaussians remember what each of these views shows, once it was looked for."""
    gaussians.freeze_geometry()
    is_new = gaussians.shown is None or not gaussians.shown.cameras.issuperset(cameras)
    if is_new and gaussians.blocks is not None:
        gaussians.shown = Shown(frozenset(cameras), most_remembered(gaussians.device))


def most_remembered(device: torch.device) -> int:
    """Return how many bytes may be kept of what views show: 4 GiB, or a tenth of what is free, up to 16."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    return int(min(max(_KEPT, _SHARE * free), _MOST_KEPT))


@torch.no_grad()
def rows_near(gaussians: Gaussians, camera: Camera) -> Tensor | None:
    """Return the Gaussians that show in a view, and maybe others, rising, int32 [R]; None = look at all.

    Many frozen ones lie in blocks, of which those that may be in the picture are looked at. Of a view that is
    remembered only those are named that make up some pixel: the others are hidden, and change no bit of it.
    """
    if gaussians.blocks is None:
        return None
    shown = gaussians.shown
    if shown is not None and camera in shown.rows:
        return shown.rows[camera]
    rows = _rows_in_sight(gaussians.blocks, camera)
    if shown is None or camera not in shown.cameras or shown.nbytes > shown.most:
        return rows
    ids = weights_of_rows(gaussians, camera, rows).gaussian_ids
    makes_up = torch.zeros(len(gaussians) if rows is None else len(rows), dtype=torch.bool, device=ids.device)
    found = makes_up.index_fill_(0, ids.long(), True).nonzero()[:, 0].int()
    shown.rows[camera] = found = found if rows is None else rows.index_select(0, found)
    shown.nbytes += found.nbytes
    return found


def _rows_in_sight(blocks: Blocks, camera: Camera) -> Tensor | None:
    """Return the Gaussians in blocks that do not lie behind the camera or beyond a border with all that they reach.

    That is found on the host, which need not wait for a GPU. None: those are most.
    """
    planes, reach = [(0.0, 0.0, -1.0)], [0.0]  # a centre in the camera is seen if plane . centre <= reach x its size
    for axis, f, at, size in ((0, camera.fx, camera.cx, camera.width), (1, camera.fy, camera.cy, camera.height)):
        slope = (max(at, size - at) + FRUSTUM_MARGIN / 2 * size) / f  # where the Jacobian is largest
        for side, z in ((f, at - size), (-f, -at)):
            planes.append((side, 0.0, z - _MARGIN) if axis == 0 else (0.0, side, z - _MARGIN))
            reach.append(_REACH * f * math.hypot(1, slope))
    pose = torch.from_numpy(camera.cam_from_world)
    normals = torch.tensor(planes, dtype=torch.float64)
    middle, half = (blocks.low + blocks.high) / 2, (blocks.high - blocks.low) / 2
    in_world = normals @ pose[:3, :3]
    least = middle @ in_world.T + normals @ pose[:3, 3] - half @ in_world.abs().T  # of all centres in a box, [B, 5]
    near = (least <= blocks.reach[:, None] * torch.tensor(reach)).all(dim=1).nonzero()[:, 0]
    return None if len(near) > _MOST * len(least) else blocks.points_in(near)


def picked(values: Tensor, rows: Tensor | None) -> Tensor:
    """Return the values of some Gaussians, None = all."""
    return values if rows is None else values.index_select(0, rows)


def geometry_of(gaussians: Gaussians, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return means, quaternions, scales and opacities of some Gaussians, None = all."""
    scales, opacities = picked(gaussians.log_scales, rows).exp(), picked(gaussians.logit_opacities, rows).sigmoid()
    return picked(gaussians.means, rows), picked(gaussians.quats, rows), scales, opacities


def weights_of_rows(
    gaussians: Gaussians, camera: Camera, rows: Tensor | None, *, pixels: Tensor | None = None, min_weight: float = 0.0
) -> PixelWeights:
    """Return `blending_weights` as if there were no Gaussians but `rows`, int32 [R], in which ids count; None = all."""
    view = (*camera.tensors(gaussians.device), camera.width, camera.height)
    antialiased = gaussians.antialiased
    return pixel_weights(*geometry_of(gaussians, rows), *view, pixels, min_weight=min_weight, antialiased=antialiased)
