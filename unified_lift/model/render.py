"""render(): the only caller of the rasterizer for whole views. Training, evaluation and viewing share it."""

from dataclasses import replace

import torch
from diff_gaussian_rasterization import PixelWeights, rasterize
from torch import Tensor

from unified_lift.model.gaussians import Gaussians
from unified_lift.model.near import geometry_of, picked, rows_near, weights_of_rows
from unified_lift.types import Camera, RenderOutput


def render(
    gaussians: Gaussians,
    camera: Camera,
    *,
    sh_degree: int | None = None,
    background: Tensor | None = None,
    with_features: bool = True,
    means2d: Tensor | None = None,
    features_move_geometry: bool = False,
) -> RenderOutput:
    """Return colour, instance features, alpha and depth of one view.

    Source: 3D-GS Eq. 3 for colour and features alike.
    Args:
        sh_degree: Active SH degree; None = all the table holds.
        background: Colour behind everything in [0, 1], [3]; None = black. Features are composited over zero.
        with_features: Also blend the features.
        means2d: Zeros [N, 2]; after backward its grad is d loss / d pixel position of each Gaussian.
        features_move_geometry: Let losses on features reach opacity and shape [Gaussian Grouping].
    Gradient: to every parameter; by default that of the features stops at the features [released].
    """
    viewmat, intrinsics = camera.tensors(gaussians.device)
    rows = None if means2d is not None else rows_near(gaussians, camera)
    out = rasterize(
        *geometry_of(gaussians, rows),
        torch.cat([picked(gaussians.sh0, rows), picked(gaussians.shN, rows)], dim=1),
        picked(gaussians.features, rows) if with_features and gaussians.feature_dim else None,
        viewmat[None],
        intrinsics[None],
        camera.width,
        camera.height,
        sh_degree=gaussians.sh_degree if sh_degree is None else min(sh_degree, gaussians.sh_degree),
        backgrounds=None if background is None else background[None],
        means2d=None if means2d is None else means2d[None],
        features_move_geometry=features_move_geometry,
        antialiased=gaussians.antialiased,
    )
    radii = out.meta.radii[0]
    if rows is not None:
        radii = radii.new_zeros(len(gaussians)).index_copy_(0, rows.long(), radii)
    return RenderOutput(
        image=out.image[0], features=out.features[0], alpha=out.alpha[0], depth=out.depth[0], radii=radii
    )


@torch.no_grad()
def points_seen(rendered: RenderOutput, camera: Camera) -> Tensor:
    """Return the point of the world that each pixel shows, at its mean depth, row by row, [H * W, 3]."""
    depth, (height, width) = rendered.depth / rendered.alpha.clamp(min=1e-6), rendered.depth.shape
    cam_from_world, intrinsics = camera.tensors(depth.device)
    y, x = torch.meshgrid(*(torch.arange(size, device=depth.device) + 0.5 for size in (height, width)), indexing="ij")
    ray = torch.stack([(x - intrinsics[0, 2]) / intrinsics[0, 0], (y - intrinsics[1, 2]) / intrinsics[1, 1]], dim=-1)
    in_camera = torch.cat([ray, torch.ones_like(ray[..., :1])], dim=-1) * depth[..., None]
    return ((in_camera - cam_from_world[:3, 3]) @ cam_from_world[:3, :3]).flatten(0, 1)


def blending_weights(
    gaussians: Gaussians, camera: Camera, *, pixels: Tensor | None = None, min_weight: float = 0.0
) -> PixelWeights:
    """Return the weight of every Gaussian in every pixel of a view: the fixed linear map from features to pixels.

    `pixels` are (x, y) int64 [P, 2], None = all pixels, row by row; weights below `min_weight` are dropped.
    Gradient: none.
    """
    rows = rows_near(gaussians, camera)
    found = weights_of_rows(gaussians, camera, rows, pixels=pixels, min_weight=min_weight)
    if rows is None:
        return found
    return replace(found, gaussian_ids=rows.index_select(0, found.gaussian_ids), num_gaussians=len(gaussians))
