"""The gsplat package behind our arguments: another program for the same images, to check ours against.

Written for gsplat 1.5.3 (Apache-2.0). All channels are blended on one tile list; unless features move geometry they are
blended a second time with positions, shapes and opacities held fixed. The README lists where the two programs differ.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import gsplat
import torch
from torch import Tensor

from . import reference
from ._compiled import require_fixed_cameras
from .types import LOW_PASS, Inputs, Options, RasterMeta, RasterOutput

TILE = 16  # pixels; other sizes are untested there
MOST_CHANNELS = 32  # of one pass, as gsplat itself does it; more spill registers


def rasterize(inputs: Inputs, options: Options) -> RasterOutput:
    """Return the maps that gsplat renders.

    Raises:
        ValueError: A camera tensor requires a gradient, or sums of absolute gradients are asked for.
    """
    require_fixed_cameras("implementation='gsplat' gives", inputs)
    if inputs.absolute2d is not None:
        raise ValueError("implementation='gsplat' gives no sums of absolute gradients; leave it at 'auto'")
    if len(inputs.means) == 0:  # gsplat divides by the number of Gaussians
        return reference.rasterize(inputs, options)
    means, quats, scales, opacities, colors_or_sh, features, viewmats, Ks, backgrounds, means2d, _ = inputs
    width, height, near, sh_degree, features_move_geometry, antialiased = options
    num, cameras = means.shape[0], viewmats.shape[0]
    features = means.new_zeros(num, 0) if features is None else features
    usable = _usable(means, quats, scales, opacities[:, None], colors_or_sh, features)
    opacities = torch.where(usable, opacities, torch.zeros_like(opacities))  # gsplat culls what is invisible
    boxes, centres, depths, conics, shares = gsplat.fully_fused_projection(
        means, None, quats, scales, viewmats, Ks, width, height,
        eps2d=LOW_PASS, near_plane=near, packed=False, opacities=opacities,
        calc_compensations=antialiased,
    )  # fmt: skip
    visible = (boxes > 0).all(-1)  # [C, N]
    centres = centres if means2d is None else centres + means2d
    colors = _colors(means, colors_or_sh, viewmats, visible, degree=sh_degree)
    backgrounds = viewmats.new_zeros(cameras, 3) if backgrounds is None else backgrounds
    backgrounds = torch.cat([backgrounds, viewmats.new_zeros(cameras, 1)], -1)  # depth is composited over zero

    shown = opacities.expand(cameras, num)
    if antialiased:
        shown = shown * torch.where(visible, shares, torch.zeros_like(shares))
    splats = (centres, conics, shown)
    columns, rows = math.ceil(width / TILE), math.ceil(height / TILE)
    _, keys, entries = gsplat.isect_tiles(centres, boxes, depths, TILE, columns, rows)
    lists = (width, height, TILE, gsplat.isect_offset_encode(keys, cameras, columns, rows), entries)
    first, alpha = _blend(splats, torch.cat([colors, depths[..., None]], -1), lists, backgrounds)
    if not features_move_geometry:
        splats = tuple(t.detach() for t in splats)
    blended, _ = _blend(splats, features.expand(cameras, *features.shape), lists, None)
    places = torch.where(visible[..., None], centres.detach(), torch.zeros_like(centres))
    meta = RasterMeta(_radii(conics, visible), places, entries.numel())
    return RasterOutput(first[..., :3], blended, alpha, first[..., 3], meta)


def _usable(*values: Tensor) -> Tensor:
    """Return which Gaussians have finite numbers and a rotation, bool [N]; the second tensor holds the quaternions."""
    usable = (values[1] != 0).any(-1)
    for value in values:
        usable &= torch.isfinite(value.flatten(1)).all(-1)
    return usable


def _colors(means: Tensor, colors_or_sh: Tensor, viewmats: Tensor, visible: Tensor, *, degree: int | None) -> Tensor:
    """Return the colour seen by every camera, [C, N, 3]; anything where `visible` [C, N] is false."""
    rows = colors_or_sh.expand(len(viewmats), *colors_or_sh.shape)
    if degree is None:
        return rows
    eyes = -(viewmats[:, :3, :3].transpose(1, 2) @ viewmats[:, :3, 3:])[..., 0]  # [C, 3]
    return (gsplat.spherical_harmonics(degree, means - eyes[:, None], rows, masks=visible) + 0.5).clamp(min=0)


def _blend(
    splats: tuple[Tensor, ...], values: Tensor, lists: tuple[Any, ...], backgrounds: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return values [C, N, D] blended over the backgrounds [C, D], [C, H, W, D], and alpha [C, H, W]; None if D = 0.

    Args:
        splats: Centres [C, N, 2], conics [C, N, 3] and opacities [C, N]; rows of culled Gaussians hold anything.
        values, backgrounds: As above.
        lists: Width, height, tile size, first entry of each tile, and entries into [C * N], nearest first.
    """
    (centres, conics, opacities), (width, height, *_) = splats, lists
    maps, alpha = [values.new_zeros(values.shape[0], height, width, 0)], None
    for start in range(0, values.shape[-1], MOST_CHANNELS):
        chunk = slice(start, start + MOST_CHANNELS)
        blended, alpha = gsplat.rasterize_to_pixels(
            centres, conics, values[..., chunk], opacities, *lists,
            backgrounds=None if backgrounds is None else backgrounds[..., chunk],
        )  # fmt: skip
        maps.append(blended)
    return torch.cat(maps, -1), None if alpha is None else alpha[..., 0]


@torch.no_grad()
def _radii(conics: Tensor, visible: Tensor) -> Tensor:
    """Return ceil(3 sigma) along the longer axis, 0 where not visible, int32 [C, N]; gsplat has the box only."""
    a, b, c = conics.unbind(-1)
    determinant = 1 / (a * c - b * b)  # of the covariance
    mean = 0.5 * (a + c) * determinant  # of its eigenvalues
    largest = mean + torch.sqrt((mean * mean - determinant).clamp(min=0.1))
    radii = torch.ceil(3 * torch.sqrt(largest)).clamp(max=2**30)
    return torch.where(visible, radii, torch.zeros_like(radii)).to(torch.int32)


def _renders_only(*_: object, **__: object) -> NoReturn:
    raise ValueError("implementation='gsplat' renders whole views and nothing else; leave it at 'auto' here")


pixel_weights = blend = scatter = _renders_only
