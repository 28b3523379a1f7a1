"""The definition: Gaussian splatting in plain torch, differentiable by autograd, in any float type on any device.

Slow and obvious on purpose. Every fast implementation must agree with this file; tests/rasterizer checks it.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import types
from .types import Inputs, Options, PixelWeights, RasterMeta, RasterOutput

TILE = 16  # pixels; bounds the memory of the dense blending below, never the result

# Real spherical harmonics up to degree 3 in the order and sign of 3DGS files.
SH_C0 = 0.28209479177387814
SH_C1 = 0.4886025119029199
SH_C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
SH_C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)


class Splats(NamedTuple):
    """The visible Gaussians of one view, nearest first."""

    index: Tensor  # which Gaussian, int64 [M]
    means2d: Tensor  # centres in corner-origin pixels, [M, 2]
    conics: Tensor  # upper triangle (xx, xy, yy) of the inverse 2D covariance in px^-2, [M, 3]
    depths: Tensor  # camera z, [M]
    opacities: Tensor  # compensated for the low-pass if that was asked for, [M]
    extents: Tensor  # half sides in px of the box around the region where alpha >= 1/255, [M, 2]
    radii: Tensor  # ceil(3 sigma) in px, int32 [M]
    absolute2d: Tensor | None = None  # zeros whose gradient is what `_AtPixels` says, [M, 2]


def quaternion_matrix(quats: Tensor) -> Tensor:
    """Return rotation matrices [N, 3, 3] of wxyz quaternions [N, 4] of any non-zero norm (zero gives NaN)."""
    w, x, y, z = (quats / quats.square().sum(-1, keepdim=True).sqrt()).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(*quats.shape[:-1], 3, 3)


def harmonics_color(sh: Tensor, directions: Tensor, *, degree: int) -> Tensor:
    """Return view-dependent colour max(0, sum_k sh_k Y_k(direction) + 0.5), [N, 3].

    Args:
        sh: Coefficients, [N, K, 3] with K >= (degree + 1)^2.
        directions: Unit vectors from the camera centre to the Gaussian in world axes, [N, 3].
        degree: Highest band used, 0 to 3.
    """
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, SH_C0)]
    if degree >= 1:
        basis += [-SH_C1 * y, SH_C1 * z, -SH_C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        polynomials = (x * y, y * z, 2 * zz - xx - yy, x * z, xx - yy)
        basis += [c * p for c, p in zip(SH_C2, polynomials, strict=True)]
    if degree >= 3:
        polynomials = (
            y * (3 * xx - yy),
            x * y * z,
            y * (4 * zz - xx - yy),
            z * (2 * zz - 3 * xx - 3 * yy),
            x * (4 * zz - xx - yy),
            z * (xx - yy),
            x * (xx - 3 * yy),
        )
        basis += [c * p for c, p in zip(SH_C3, polynomials, strict=True)]
    weights = torch.stack(basis, -1)  # [N, (degree + 1)^2]
    return ((weights[..., None] * sh[:, : weights.shape[-1]]).sum(-2) + 0.5).clamp(min=0)


def project(
    means: Tensor, quats: Tensor, scales: Tensor, viewmat: Tensor, K: Tensor, *, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pixel centres [N, 2], 2D covariances (xx, xy, yy) [N, 3] with the low-pass, camera depths [N], and [N] the
    share sqrt(det S / det(S + 0.3 I)) of its opacity that a Gaussian keeps when the low-pass of S is compensated.

    Source: the local affine approximation of EWA splatting; Sigma' = S + 0.3 I, S = J W Sigma W^T J^T. The share: 2D
    mip filter of Mip-Splatting (Yu et al. 2024, section 4.2), with the 0.3 px^2 of 3DGS as gsplat has it.
    The Jacobian is evaluated inside the image widened by 0.3 half-fields-of-view on each side, measured from the true
    image borders, so it stays right for an off-centre principal point.
    """
    rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    camera = means @ rotation.T + translation
    x, y, z = camera.unbind(-1)
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)

    margin_x, margin_y = types.FRUSTUM_MARGIN * 0.5 * width / fx, types.FRUSTUM_MARGIN * 0.5 * height / fy
    slope_x = torch.minimum(torch.maximum(x / z, -cx / fx - margin_x), (width - cx) / fx + margin_x)
    slope_y = torch.minimum(torch.maximum(y / z, -cy / fy - margin_y), (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * slope_x / z, zero, fy / z, -fy * slope_y / z], -1).reshape(-1, 2, 3)

    root = quaternion_matrix(quats) * scales[:, None, :]  # Sigma = root root^T
    flat = jacobian @ (rotation @ root)  # [N, 2, 3]
    covariance = flat @ flat.transpose(-1, -2)
    xx, yy = covariance[:, 0, 0] + types.LOW_PASS, covariance[:, 1, 1] + types.LOW_PASS
    packed = torch.stack([xx, covariance[:, 0, 1], yy], -1)
    # det S is the squared area between the rows of `flat`, which rounds far better than the difference of products
    area = torch.linalg.cross(flat[:, 0], flat[:, 1]).square().sum(-1)
    return means2d, packed, z, torch.sqrt(area / (xx * yy - covariance[:, 0, 1] ** 2))


def conics_of(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Return inverse covariances (xx, xy, yy) [N, 3] and determinants [N]."""
    a, b, c = covariances.unbind(-1)
    determinant = a * c - b * b
    return torch.stack([c, -b, a], -1) / determinant[:, None], determinant


def visible_splats(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, viewmat: Tensor, K: Tensor,
    *, width: int, height: int, near: float, antialiased: bool, offset: Tensor | None, payload: tuple[Tensor, ...] = (),
) -> Splats:  # fmt: skip
    """Return the Gaussians that can touch the image, sorted by depth and then by index.

    Culled: camera z <= near, any non-finite parameter or payload, zero quaternion, singular covariance, opacity below
    1/255, and ellipses {alpha >= 1/255} whose box misses the image. Culled Gaussians get zero gradient. `offset` [N, 2]
    is added to the pixel centres; `payload` are further tensors [N, ...] that must be finite. With `antialiased` every
    opacity, also that which culls, is the compensated one.
    """
    shape = {"width": width, "height": height}
    with torch.no_grad():
        centre, covariance, depth, share = project(means, quats, scales, viewmat, K, **shape)
        shown = opacities * share if antialiased else opacities
        centre = centre if offset is None else centre + offset
        conic, determinant = conics_of(covariance)
        reach = 2 * torch.log(shown / types.ALPHA_MIN)  # squared Mahalanobis radius where alpha reaches 1/255
        extent = torch.sqrt(reach[:, None] * covariance[:, [0, 2]])
        size = torch.tensor([width, height], dtype=centre.dtype, device=centre.device)
        inside = ((centre + extent > 0) & (centre - extent < size)).all(-1)
        keep = inside & (depth > near) & (determinant > 0) & (shown >= types.ALPHA_MIN)
        for value in (means, quats, scales, centre, conic, *payload):
            keep &= torch.isfinite(value.flatten(1)).all(-1)
        keep &= torch.isfinite(opacities)
        index = keep.nonzero().squeeze(-1)
        index = index[torch.argsort(depth[index], stable=True)]
        a, b, c = covariance[index].unbind(-1)
        largest = 0.5 * (a + c) + torch.sqrt((0.25 * (a + c) ** 2 - determinant[index]).clamp(min=0.1))
        radii = torch.ceil(3 * torch.sqrt(largest)).clamp(max=2**30).to(torch.int32)
    means2d, covariances, depths, share = project(means[index], quats[index], scales[index], viewmat, K, **shape)
    means2d = means2d if offset is None else means2d + offset[index]
    conics, _ = conics_of(covariances)
    shown = opacities[index] * share if antialiased else opacities[index]
    return Splats(index, means2d, conics, depths, shown, extent[index], radii)


def tile_members(splats: Splats, *, left: int, top: int) -> Tensor:
    """Return positions in `splats` of those whose box touches the tile, nearest first, int64."""
    margin = 0.01  # px; the box may only be too large
    low = splats.means2d.detach() - splats.extents - margin
    high = splats.means2d.detach() + splats.extents + margin
    hit = (high[:, 0] > left) & (low[:, 0] < left + TILE) & (high[:, 1] > top) & (low[:, 1] < top + TILE)
    return hit.nonzero().squeeze(-1)


class _AtPixels(torch.autograd.Function):
    """The centres [G, 2] as P pixels use them, [G, P, 2].

    `absolute2d` [G, 2] gets, in place of a derivative, the sum of the absolute values of what comes back from pixels.
    """

    @staticmethod
    def forward(ctx: Any, centres: Tensor, absolute2d: Tensor, num_pixels: int) -> Tensor:  # noqa: ARG004
        return centres[:, None].expand(-1, num_pixels, -1)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ARG004
        return incoming.sum(1), incoming.abs().sum(1), None


def blend_weights(splats: Splats, members: Tensor, pixels: Tensor) -> Tensor:
    """Return weight_i = alpha_i prod_{j<i} (1 - alpha_j) of each of `members`, nearest first, at each pixel, [G, P].

    The pixels [P, 2] are positions in corner-origin pixels (centres at +0.5).
    """
    centres = splats.means2d[members][:, None]
    if splats.absolute2d is not None:
        centres = _AtPixels.apply(centres[:, 0], splats.absolute2d[members], len(pixels))
    delta = pixels[None] - centres  # [G, P, 2]
    dx, dy = delta.unbind(-1)
    a, b, c = splats.conics[members][..., None].unbind(1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (splats.opacities[members][:, None] * torch.exp(-sigma)).clamp(max=types.ALPHA_MAX)
    # a negative exponent can only come from rounding in a needle-thin Gaussian
    alpha = torch.where((alpha >= types.ALPHA_MIN) & (sigma >= 0), alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, dim=0)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    return torch.where(after >= types.TRANSMITTANCE_MIN, alpha * before, torch.zeros_like(alpha))


def _tiles(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Return (left, top, right, bottom) of every tile, row by row."""
    corners = itertools.product(range(0, height, TILE), range(0, width, TILE))
    return [(x, y, min(x + TILE, width), min(y + TILE, height)) for y, x in corners]


def _rasterize_view(
    splats: Splats, colors: Tensor, features: Tensor, background: Tensor,
    *, width: int, height: int, features_move_geometry: bool,
) -> tuple[Tensor, int]:  # fmt: skip
    """Return one map [H, W, 3 + 1 + 1 + D] of colour, alpha, depth, features, and the pair count."""
    rows: list[Tensor] = []
    row_tiles: list[Tensor] = []
    num_pairs = 0
    for left, top, right, bottom in _tiles(width, height):
        grid_y, grid_x = torch.meshgrid(torch.arange(top, bottom), torch.arange(left, right), indexing="ij")
        pixels = torch.stack([grid_x, grid_y], -1).reshape(-1, 2).to(splats.means2d) + 0.5
        members = tile_members(splats, left=left, top=top)
        num_pairs += members.numel()
        weights = blend_weights(splats, members, pixels)  # [G, P]
        feature_weights = weights if features_move_geometry else weights.detach()
        alpha = weights.sum(0)[:, None]
        image = weights.T @ colors[members] + (1 - alpha) * background
        depth = weights.T @ splats.depths[members][:, None]
        tile = torch.cat([image, alpha, depth, feature_weights.T @ features[members]], -1)
        row_tiles.append(tile.reshape(bottom - top, right - left, -1))
        if right == width:
            rows.append(torch.cat(row_tiles, 1))
            row_tiles = []
    return torch.cat(rows, 0), num_pairs


def rasterize(inputs: Inputs, options: Options) -> RasterOutput:
    """Return the rendered maps."""
    means, quats, scales, opacities, colors_or_sh, features, viewmats, Ks, backgrounds, means2d, absolute2d = inputs
    width, height, near, sh_degree, features_move_geometry, antialiased = options
    features = means.new_zeros(means.shape[0], 0) if features is None else features
    maps, radii, centres, num_pairs = [], [], [], 0
    for c in range(viewmats.shape[0]):
        splats = visible_splats(
            means, quats, scales, opacities, viewmats[c], Ks[c], width=width, height=height, near=near,
            antialiased=antialiased, offset=None if means2d is None else means2d[c], payload=(colors_or_sh, features),
        )  # fmt: skip
        if absolute2d is not None:
            splats = splats._replace(absolute2d=absolute2d[c][splats.index])
        colors = colors_or_sh[splats.index]
        if sh_degree is not None:
            eye = -viewmats[c, :3, :3].T @ viewmats[c, :3, 3]
            offsets = means[splats.index] - eye
            colors = harmonics_color(colors, offsets / offsets.norm(dim=-1, keepdim=True), degree=sh_degree)
        background = means.new_zeros(3) if backgrounds is None else backgrounds[c]
        view, pairs = _rasterize_view(
            splats, colors, features[splats.index], background,
            width=width, height=height, features_move_geometry=features_move_geometry,
        )  # fmt: skip
        maps.append(view)
        num_pairs += pairs
        radii.append(torch.zeros(means.shape[0], dtype=torch.int32, device=means.device))
        radii[-1][splats.index] = splats.radii
        centres.append(torch.zeros_like(means[:, :2]).detach())
        centres[-1][splats.index] = splats.means2d.detach()
    out = torch.stack(maps)
    meta = RasterMeta(torch.stack(radii), torch.stack(centres), num_pairs)
    return RasterOutput(out[..., :3], out[..., 5:], out[..., 3], out[..., 4], meta)


def pixel_weights(inputs: Inputs, options: Options, pixels: Tensor, min_weight: float) -> PixelWeights:
    """Return the sparse blending weights of the pixels of the first camera."""
    means, (width, height, near, *_) = inputs.means, options
    with torch.no_grad():
        splats = visible_splats(
            *inputs[:4], inputs.viewmats[0], inputs.Ks[0], width=width, height=height, near=near,
            antialiased=options.antialiased, offset=None,
        )  # fmt: skip
        entries: list[tuple[Tensor, Tensor, Tensor]] = []
        empty = torch.zeros(0, dtype=torch.int64, device=means.device)
        entries.append((empty, empty, means.new_zeros(0)))
        for left, top, right, bottom in _tiles(width, height):
            inside = (pixels[:, 0] >= left) & (pixels[:, 0] < right) & (pixels[:, 1] >= top) & (pixels[:, 1] < bottom)
            rows = inside.nonzero().squeeze(-1)
            members = tile_members(splats, left=left, top=top)
            if rows.numel() == 0 or members.numel() == 0:
                continue
            weights = blend_weights(splats, members, pixels[rows].to(means) + 0.5).T  # [P, G]
            row, member = ((weights > 0) & (weights >= min_weight)).nonzero(as_tuple=True)
            entries.append((rows[row], splats.index[members[member]], weights[row, member]))
        row_ids, ids, weights = (torch.cat(parts) for parts in zip(*entries, strict=True))
        order = torch.argsort(row_ids, stable=True)
        offsets = torch.zeros(pixels.shape[0] + 1, dtype=torch.int64, device=means.device)
        torch.cumsum(torch.bincount(row_ids, minlength=pixels.shape[0]), 0, out=offsets[1:])
        return PixelWeights(offsets, ids[order].to(torch.int32), weights[order], means.shape[0])


def _chosen(weights: PixelWeights, rows: Tensor | None) -> PixelWeights:
    """Return the chosen rows in the given order."""
    if rows is None:
        return weights
    start = weights.offsets[rows]
    counts = weights.offsets[rows + 1] - start
    offsets = torch.zeros(rows.numel() + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    # entry k of the result sits at start[row] + (k - offsets[row]) in the original
    shift = torch.repeat_interleave(start - offsets[:-1], counts)
    source = shift + torch.arange(shift.numel(), device=rows.device)
    return PixelWeights(offsets, weights.gaussian_ids[source], weights.weights[source], weights.num_gaussians)


def blend(weights: PixelWeights, features: Tensor, rows: Tensor | None) -> Tensor:
    """Return the weighted sums of features, [P, D]; differentiable in the features."""
    weights = _chosen(weights, rows)
    products = weights.weights[:, None] * features[weights.gaussian_ids.long()]
    return features.new_zeros(weights.num_rows, features.shape[1]).index_add(0, weights.row_ids(), products)


def scatter(weights: PixelWeights, values: Tensor, num_gaussians: int, rows: Tensor | None) -> Tensor:
    """Return per-Gaussian weighted sums of pixel values, the transpose of `blend`, [N, D]."""
    weights = _chosen(weights, rows)
    products = weights.weights[:, None] * values[weights.row_ids()]
    return values.new_zeros(num_gaussians, values.shape[1]).index_add(0, weights.gaussian_ids.long(), products)
