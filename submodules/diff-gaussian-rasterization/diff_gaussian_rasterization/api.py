"""Public entries: check what the caller passed, then hand over to the chosen implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native
from .types import NEAR, Inputs, Options, PixelWeights, RasterOutput


def _require_shapes(sizes: dict[str, int], **tensors: tuple[Tensor | None, tuple[str | int, ...]]) -> None:
    """Check shapes, dtype and device of tensors; letters bind to the first size seen.

    Raises:
        ValueError: A tensor has another shape, dtype or device than expected.
    """
    first: Tensor | None = None
    for name, (value, dims) in tensors.items():
        if value is None:
            continue
        listed = f"[{', '.join(map(str, dims))}]"
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must be a tensor {listed}, got {type(value).__name__}")
        shape = value.shape
        good = len(shape) == len(dims)
        for size, dim in zip(shape, dims):
            good = good and size == (sizes.setdefault(dim, size) if type(dim) is str else dim)
        if not good:
            known = ", ".join(f"{k} = {v}" for k, v in sizes.items())
            raise ValueError(f"{name} must have shape {listed} with {known}; got {list(shape)}")
        if first is None:
            first = value
        if value.dtype != first.dtype or value.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 or float64 like the means ({first.dtype}), got {value.dtype}")
        if value.device != first.device:
            raise ValueError(f"{name} must be on {first.device} like the means, got {value.device}")
    if sizes.get("N", 0) >= 2**31:
        raise ValueError(f"{sizes['N']} Gaussians, 31 bits number them: at most {2**31 - 1}; render parts of the scene")


def _require_image(width: int, height: int, near: float) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"width and height must be at least 1 pixel, got {width} x {height}")
    if not near > 0:
        raise ValueError(f"near must be positive, got {near}")


def _require_harmonics(colors_or_sh: Tensor, sh_degree: int | None, sizes: dict[str, int]) -> None:
    if sh_degree is None:
        _require_shapes(sizes, colors_or_sh=(colors_or_sh, ("N", 3)))
        return
    if sh_degree not in (0, 1, 2, 3):
        raise ValueError(f"sh_degree must be 0, 1, 2, 3 or None for plain colours, got {sh_degree}")
    _require_shapes(sizes, colors_or_sh=(colors_or_sh, ("N", "K", 3)))
    if colors_or_sh.shape[1] < (sh_degree + 1) ** 2:
        raise ValueError(
            f"sh_degree {sh_degree} needs {(sh_degree + 1) ** 2} coefficients, colors_or_sh has {colors_or_sh.shape[1]}"
        )


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors_or_sh: Tensor,
    features: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,
    means2d: Tensor | None = None,
    absolute2d: Tensor | None = None,
    features_move_geometry: bool = False,
    antialiased: bool = False,
    near: float = NEAR,
    implementation: str = "auto",
) -> RasterOutput:
    """Return colour, features, alpha and depth of Gaussians seen by a batch of cameras.

    Source: 3D Gaussian Splatting (Kerbl et al. 2023), Eq. 2-6; constants in `types.py`.
    Args:
        means: Centres in world units, [N, 3].
        quats: Rotations wxyz of any non-zero norm, [N, 4]; a zero quaternion culls its Gaussian.
        scales: Standard deviations along the local axes in world units, [N, 3].
        opacities: In [0, 1], [N].
        colors_or_sh: Plain colours [N, 3], or harmonics [N, K, 3] if `sh_degree` is given: max(0, sh(direction) + 0.5).
        features: Instance features [N, D] of any width, or None.
        viewmats: cam_from_world, OpenCV axes, [C, 4, 4].
        Ks: Intrinsics in corner-origin pixels (pixel centres at +0.5), true principal point, [C, 3, 3].
        width, height: Image size in pixels.
        sh_degree: Active degree 0 to 3, (degree + 1)^2 <= K; None for plain colours.
        backgrounds: Colour behind everything, [C, 3]; None is black.
        means2d: A tensor of zeros [C, N, 2] that is added to the projected centres; after backward its grad is the
            derivative by pixel position, the densification statistic.
        absolute2d: A tensor of zeros [C, N, 2] that changes nothing; after backward its grad is the sum of the absolute
            values of what single pixels contribute to the derivative by pixel position: the densification statistic of
            AbsGS (Ye et al. 2024), in which pixels that pull in opposite directions do not cancel. Not in "gsplat".
        features_move_geometry: Whether a loss on the features reaches opacity and geometry.
        antialiased: Whether each opacity is multiplied by sqrt(det S / det(S + 0.3 I)), S the 2D covariance without the
            low-pass: what that widens then grows no brighter (Mip-Splatting, Yu et al. 2024, section 4.2).
        near: Gaussians with camera z <= near are culled, world units.
        implementation: "auto", "reference", "cpu", "cuda" or "gsplat".
    Returns:
        image [C, H, W, 3], features [C, H, W, D] over zero, alpha [C, H, W], depth [C, H, W] (sum of weight * z, not
        normalised) and meta (radii, means2d, num_pairs).
    Raises:
        ValueError: Shapes, dtypes or settings do not fit; the message states expected and received.
    Gradient: to every tensor argument. From features to opacities, means, quats, scales and means2d only if
        `features_move_geometry`. To viewmats and Ks only in the "reference" implementation. Zero for culled Gaussians
        and where alpha is clamped to 0.99.
    Differs: 3DGS lets a Gaussian touch the 16x16 tiles that its 3-sigma square meets; here it contributes exactly
        where alpha >= 1/255, up to 3.33 sigma. The two differ in a faint rim. 3DGS ignores the principal point.
    """
    sizes: dict[str, int] = {}
    _require_image(width, height, near)
    _require_shapes(
        sizes, means=(means, ("N", 3)), quats=(quats, ("N", 4)), scales=(scales, ("N", 3)),
        opacities=(opacities, ("N",)), features=(features, ("N", "D")),
        viewmats=(viewmats, ("C", 4, 4)), Ks=(Ks, ("C", 3, 3)),
        backgrounds=(backgrounds, ("C", 3)), means2d=(means2d, ("C", "N", 2)), absolute2d=(absolute2d, ("C", "N", 2)),
    )  # fmt: skip
    _require_harmonics(colors_or_sh, sh_degree, sizes)
    if colors_or_sh.dtype != means.dtype or colors_or_sh.device != means.device:
        raise ValueError(f"colors_or_sh must be {means.dtype} on {means.device} like the means")
    if viewmats.shape[0] < 1:
        raise ValueError("viewmats must hold at least one camera")
    inputs = Inputs(
        means, quats, scales, opacities, colors_or_sh, features, viewmats, Ks, backgrounds, means2d, absolute2d
    )
    options = Options(int(width), int(height), float(near), sh_degree, features_move_geometry, bool(antialiased))
    return native.select(implementation, means).rasterize(inputs, options)


def pixel_weights(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmat: Tensor,
    K: Tensor,
    width: int,
    height: int,
    pixels: Tensor | None = None,
    *,
    antialiased: bool = False,
    near: float = NEAR,
    min_weight: float = 0.0,
    implementation: str = "auto",
) -> PixelWeights:
    """Return which Gaussians make up each pixel, and by how much: the rows of W in features = W f.

    Args:
        means, quats, scales, opacities: As in `rasterize`.
        viewmat: cam_from_world, [4, 4].
        K: Intrinsics in corner-origin pixels, [3, 3].
        width, height: Image size in pixels.
        pixels: Integer (x, y) positions, int64 [P, 2], repeats allowed; None means all pixels row by row. On a GPU the
            row of a pixel outside the image is empty.
        antialiased, near: As in `rasterize`.
        min_weight: Smaller entries are left out; they still hide what lies behind them.
        implementation: "auto", "reference", "cpu" or "cuda".
    Returns:
        Sparse rows; `blend(result, features)` equals `rasterize(...).features` at these pixels.
    Raises:
        ValueError: Shapes do not fit or, on a CPU, a pixel lies outside the image.
    Gradient: none.
    """
    _require_image(width, height, near)
    _require_shapes(
        {}, means=(means, ("N", 3)), quats=(quats, ("N", 4)), scales=(scales, ("N", 3)), opacities=(opacities, ("N",)),
        viewmat=(viewmat, (4, 4)), K=(K, (3, 3)),
    )  # fmt: skip
    if pixels is None:
        axes = (torch.arange(size, device=means.device) for size in (height, width))
        y, x = torch.meshgrid(*axes, indexing="ij")
        pixels = torch.stack([x, y], -1).reshape(-1, 2)
    else:
        _require_pixels(pixels, width, height)
    geometry = (t.detach() for t in (means, quats, scales, opacities))
    inputs = Inputs(*geometry, None, None, viewmat.detach()[None], K.detach()[None])
    options = Options(int(width), int(height), float(near), antialiased=bool(antialiased))
    return native.select(implementation, means).pixel_weights(inputs, options, pixels, float(min_weight))


def _require_pixels(pixels: Tensor, width: int, height: int) -> None:
    """Check pixels; on a GPU not their range, since the host would have to wait."""
    if pixels.dtype != torch.int64 or pixels.ndim != 2 or pixels.shape[1] != 2:
        raise ValueError(f"pixels must be int64 [P, 2], got {pixels.dtype} {list(pixels.shape)}")
    if pixels.numel() == 0 or pixels.is_cuda:
        return
    low, high = torch.aminmax(pixels, dim=0)
    (left, top), (right, bottom) = torch.stack([low, high]).tolist()
    if left < 0 or top < 0 or right >= width or bottom >= height:
        raise ValueError(f"pixels must lie inside the {width} x {height} image as (x, y)")


def _require_ids_below(weights: PixelWeights, num_gaussians: int) -> None:
    if weights.num_gaussians > num_gaussians and weights.gaussian_ids.numel():
        largest = int(weights.gaussian_ids.max())
        if largest >= num_gaussians:
            raise ValueError(f"the weights mention Gaussian {largest}, but there are only {num_gaussians}")


def _require_rows(weights: PixelWeights, rows: Tensor | None) -> int:
    """Return the number of rows meant; on a GPU the range is not checked, since the host would have to wait."""
    if rows is None:
        return weights.num_rows
    if rows.dtype != torch.int64 or rows.ndim != 1:
        raise ValueError(f"rows must be int64 [R], got {rows.dtype} {list(rows.shape)}")
    if rows.numel() and not rows.is_cuda:
        low, high = torch.stack(torch.aminmax(rows)).tolist()
        if low < 0 or high >= weights.num_rows:
            raise ValueError(f"row numbers must lie in [0, {weights.num_rows}), got {low}..{high}")
    return rows.numel()


def blend(
    weights: PixelWeights, features: Tensor, *, rows: Tensor | None = None, implementation: str = "auto"
) -> Tensor:
    """Return features composited over zero at the pixels of `weights`, [P, D].

    Args:
        weights: From `pixel_weights`.
        features: Per-Gaussian values, [N, D].
        rows: Only these rows of `weights`, in this order, repeats allowed, int64 [R]; then the result is [R, D]. On a
            GPU a row that does not exist gives NaN.
        implementation: "auto", "reference", "cpu" or "cuda".
    Raises:
        ValueError: Shapes do not fit, the weights mention a Gaussian that `features` lacks, or a row does not exist.
    Gradient: to features (W^T times the incoming gradient); none to the weights.
    """
    _require_shapes({}, features=(features, ("N", "D")))
    _require_ids_below(weights, features.shape[0])
    _require_rows(weights, rows)
    return native.select(implementation, features).blend(weights, features, rows)


def scatter(
    weights: PixelWeights,
    values: Tensor,
    num_gaussians: int,
    *,
    rows: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Return W^T values, what each Gaussian collects from the pixels it is seen in, [N, D]: the transpose of `blend`.

    Args:
        weights: From `pixel_weights`, P rows.
        values: Per-pixel values, [P, D]; [R, D] with `rows`.
        num_gaussians: N.
        rows: The row of `weights` that each value belongs to, as in `blend`.
        implementation: "auto", "reference", "cpu" or "cuda".
    Raises:
        ValueError: Shapes do not fit, the weights mention a Gaussian at or above `num_gaussians`, or a row does not
            exist.
    Gradient: none.
    """
    _require_shapes({"P": _require_rows(weights, rows)}, values=(values, ("P", "D")))
    _require_ids_below(weights, num_gaussians)
    return native.select(implementation, values).scatter(weights, values.detach(), num_gaussians, rows)
