"""A stand-in for the gsplat package on a CPU: the calls that we make, with its shapes, computed by our definition.

As there, rows of culled Gaussians are left as found in memory: here they hold NaN, so that reading one is caught.
"""

from __future__ import annotations

import itertools
import math
import types

import torch
from diff_gaussian_rasterization import reference
from diff_gaussian_rasterization.types import LOW_PASS
from torch import Tensor

SUPPORTED = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32)  # others are padded there; above 32 a pass is slow


def fully_fused_projection(
    means: Tensor, covars: None, quats: Tensor, scales: Tensor, viewmats: Tensor, Ks: Tensor, width: int, height: int,
    *, eps2d: float, near_plane: float, packed: bool, opacities: Tensor, calc_compensations: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Return box radii [C, N, 2], centres [C, N, 2], depths [C, N], conics [C, N, 3], compensations [C, N] or None."""
    num, cameras = len(means), len(viewmats)
    assert num > 0
    assert (quats.shape, scales.shape, opacities.shape) == ((num, 4), (num, 3), (num,))
    assert Ks.shape == (cameras, 3, 3)
    assert (eps2d, packed, covars) == (LOW_PASS, False, None)
    boxes = torch.zeros(cameras, num, 2, dtype=torch.int32)
    rows = []
    for c in range(cameras):
        with torch.no_grad():
            shape = {"width": width, "height": height}
            centre, covariance, depth, share = reference.project(means, quats, scales, viewmats[c], Ks[c], **shape)
            shown = opacities * share if calc_compensations else opacities
            reach = torch.sqrt(2 * torch.log(shown * 255)).clamp(max=3.33)
            box = torch.ceil(reach[:, None] * covariance[:, [0, 2]].sqrt())
            size = torch.tensor([width, height])
            keep = (depth >= near_plane) & (shown >= 1 / 255)
            keep &= ((centre + box > 0) & (centre - box < size) & (box > 0)).all(-1)
            seen = keep.nonzero()[:, 0]
            boxes[c, seen] = box[seen].to(torch.int32)
        centre, covariance, depth, share = reference.project(
            means[seen], quats[seen], scales[seen], viewmats[c], Ks[c], **shape
        )
        values = torch.cat([centre, depth[:, None], reference.conics_of(covariance)[0], share[:, None]], -1)
        rows.append(torch.full((num, 7), math.nan).index_copy(0, seen, values))
    table = torch.stack(rows)
    return boxes, table[..., :2], table[..., 2], table[..., 3:6], table[..., 6] if calc_compensations else None


@torch.no_grad()
def isect_tiles(
    means2d: Tensor, radii: Tensor, depths: Tensor, tile_size: int, tile_width: int, tile_height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tiles per Gaussian [C, N], sort keys (image, tile, depth) and flat indices into [C * N]."""
    assert (radii.shape, radii.dtype) == (means2d.shape, torch.int32)
    assert depths.shape == means2d.shape[:-1]
    counts, found = torch.zeros(depths.shape, dtype=torch.int32), []
    for c, g in (radii > 0).all(-1).nonzero().tolist():
        low = torch.floor((means2d[c, g] - radii[c, g]) / tile_size).clamp(min=0)
        high = torch.ceil((means2d[c, g] + radii[c, g]) / tile_size)
        columns = range(int(low[0]), min(int(high[0]), tile_width))
        rows = range(int(low[1]), min(int(high[1]), tile_height))
        counts[c, g] = len(columns) * len(rows)
        flat = c * means2d.shape[1] + g
        for y, x in itertools.product(rows, columns):
            found.append((c * tile_width * tile_height + y * tile_width + x, float(depths[c, g]), flat))
    found.sort()
    keys = torch.tensor([tile for tile, _, _ in found], dtype=torch.int64)
    return counts, keys << 32, torch.tensor([flat for _, _, flat in found], dtype=torch.int32)


@torch.no_grad()
def isect_offset_encode(isect_ids: Tensor, n_images: int, tile_width: int, tile_height: int) -> Tensor:
    """Return the first entry of every tile, int32 [C, tile_height, tile_width]."""
    tiles = torch.arange(n_images * tile_width * tile_height) << 32
    return torch.searchsorted(isect_ids, tiles).to(torch.int32).reshape(n_images, tile_height, tile_width)


def rasterize_to_pixels(
    means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, image_width: int, image_height: int,
    tile_size: int, isect_offsets: Tensor, flatten_ids: Tensor, backgrounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return blended colours [C, H, W, D] and alpha [C, H, W, 1]."""
    cameras, num, channels = colors.shape
    assert channels <= SUPPORTED[-1]
    assert (means2d.shape, conics.shape) == ((cameras, num, 2), (cameras, num, 3))
    assert opacities.shape == (cameras, num)
    assert backgrounds is None or backgrounds.shape == (cameras, channels)
    table = torch.cat([means2d, conics, opacities[..., None], colors], -1).flatten(0, 1)
    ends = torch.cat([isect_offsets.flatten()[1:], torch.tensor([len(flatten_ids)])]).reshape(isect_offsets.shape)
    images = []
    for c in range(cameras):
        behind = torch.zeros(channels) if backgrounds is None else backgrounds[c]
        rows = []
        for y, (first, last) in enumerate(zip(isect_offsets[c], ends[c])):
            lists = [flatten_ids[begin:end].long() for begin, end in zip(first, last)]
            tiles = [_tile(table[own], behind, x * tile_size, y * tile_size, tile_size) for x, own in enumerate(lists)]
            rows.append(torch.cat(tiles, 1))
        images.append(torch.cat(rows)[:image_height, :image_width])
    out = torch.stack(images)
    return out[..., :-1], out[..., -1:]


def _tile(rows: Tensor, behind: Tensor, left: int, top: int, size: int) -> Tensor:
    """Return colours and alpha of one tile, [size, size, D + 1]."""
    y, x = torch.meshgrid(torch.arange(top, top + size), torch.arange(left, left + size), indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(-1, 2) + 0.5
    splats = reference.Splats(None, rows[:, :2], rows[:, 2:5], None, rows[:, 5], None, None)
    weights = reference.blend_weights(splats, torch.arange(len(rows)), pixels)
    alpha = weights.sum(0)[:, None]
    return torch.cat([weights.T @ rows[:, 6:] + (1 - alpha) * behind, alpha], -1).reshape(size, size, -1)


def spherical_harmonics(degrees_to_use: int, dirs: Tensor, coeffs: Tensor, masks: Tensor | None) -> Tensor:
    """Return sums of harmonics [C, N, 3], NaN where masked out."""
    masks = torch.ones(dirs.shape[:-1], dtype=torch.bool) if masks is None else masks
    assert coeffs.shape[:-2] == dirs.shape[:-1] == masks.shape
    units = torch.nn.functional.normalize(dirs[masks], dim=-1)
    lift = 8.0  # lifted above the clamp of our function, and lowered again
    shifted = torch.cat([coeffs[masks][:, :1] + lift / reference.SH_C0, coeffs[masks][:, 1:]], 1)
    values = reference.harmonics_color(shifted, units, degree=degrees_to_use) - lift - 0.5
    return torch.full(dirs.shape, math.nan).index_put(masks.nonzero(as_tuple=True), values)


def rasterization(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    width: int, height: int, *, near_plane: float, packed: bool, sh_degree: int | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
    """Return colours [C, H, W, D], alpha [C, H, W, 1] and by-products; `packed` drops the culled rows of means2d."""
    boxes, centres, depths, conics, _ = fully_fused_projection(
        means, None, quats, scales, viewmats, Ks, width, height,
        eps2d=LOW_PASS, near_plane=near_plane, packed=False, opacities=opacities,
    )  # fmt: skip
    visible = (boxes > 0).all(-1)
    means2d = centres[visible] if packed else centres
    if packed:
        centres = torch.full(centres.shape, math.nan).index_put(visible.nonzero(as_tuple=True), means2d)
    cameras = len(viewmats)
    if colors.ndim == 2 or sh_degree is not None:  # else [C, N, D], a table for each camera
        colors = colors.expand(cameras, *colors.shape)
    if sh_degree is not None:
        eyes = torch.linalg.inv(viewmats)[:, :3, 3]
        colors = (spherical_harmonics(sh_degree, means - eyes[:, None], colors, visible) + 0.5).clamp(min=0)
    columns, rows = math.ceil(width / 16), math.ceil(height / 16)
    _, keys, entries = isect_tiles(centres, boxes, depths, 16, columns, rows)
    offsets = isect_offset_encode(keys, cameras, columns, rows)
    opacities = opacities.expand(cameras, -1)
    image, alpha = rasterize_to_pixels(centres, conics, colors, opacities, width, height, 16, offsets, entries)
    return image, alpha, {"means2d": means2d, "flatten_ids": entries, "radii": boxes}


def module() -> types.ModuleType:
    """Return a module to be put where `import gsplat` looks."""
    fake = types.ModuleType("gsplat")
    fake.__version__ = "0 (fake)"
    steps = (fully_fused_projection, isect_tiles, isect_offset_encode, rasterize_to_pixels, spherical_harmonics)
    for function in (*steps, rasterization):
        setattr(fake, function.__name__, function)
    return fake
