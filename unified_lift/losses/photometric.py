"""Colour loss of 3D-GS: L1 and D-SSIM."""

from __future__ import annotations

from diff_gaussian_rasterization import fused_ssim
from torch import Tensor


def photometric_loss(image: Tensor, target: Tensor, *, lambda_dssim: float, valid: Tensor | None = None) -> Tensor:
    """Return (1 - lambda) * L1 + lambda * (1 - SSIM).

    Source: 3D-GS Eq. 7. SSIM: 11x11 Gaussian window, sigma 1.5, zero padding, mean over pixels and channels.
    Args:
        image: Rendered colour, not clamped, [H, W, 3].
        target: Photo in [0, 1], [H, W, 3].
        lambda_dssim: Share of D-SSIM in [0, 1].
        valid: Pixels that count, bool [H, W]; the others are black in both images. None = all.
    """
    if valid is not None:
        image, target = image * valid[..., None], target * valid[..., None]  # black in both, as SSIM's padding is
    l1 = (image - target).abs().mean()
    if lambda_dssim == 0:
        return l1
    return (1 - lambda_dssim) * l1 + lambda_dssim * (1 - fused_ssim(image, target))
