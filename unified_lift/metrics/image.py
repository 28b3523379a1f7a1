"""Image quality: PSNR and SSIM as the 3DGS family reports them."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

# SSIM of Wang et al. 2004: an 11 x 11 Gaussian window and the two stabilising constants for a data range of 1.
WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03


def quantize_uint8(image: Tensor) -> Tensor:
    """Return floor(clamp(255 x + 0.5, 0, 255)) as uint8: what a stored picture holds.

    Args:
        image: Values, nominally in [0, 1], any shape.
    """
    return (image * 255 + 0.5).clamp(0, 255).floor().to(torch.uint8)


def psnr(image: Tensor, target: Tensor, *, quantize: bool = False) -> float:
    """Return the peak signal-to-noise ratio over all channels at once, dB; infinite for equal images.

    Source: -10 log10(mean squared error).
    Args:
        image: Rendered colour in [0, 1], [H, W, 3].
        target: True colour in [0, 1], [H, W, 3].
        quantize: Round both to 8 bits first, as scores of stored pictures do.
    Raises:
        ValueError: The shapes differ.
    Differs: Training logs of 3DGS average the PSNR of the three channels, which is another number.
    """
    _require_same_shape(image, target)
    if quantize:
        image, target = quantize_uint8(image).double() / 255, quantize_uint8(target).double() / 255
    error = (image.double() - target.double()).square().mean()
    return float(-10 * torch.log10(error))


def ssim(image: Tensor, target: Tensor) -> float:
    """Return the structural similarity, mean over all pixels and channels.

    Source: Wang et al. 2004; Gaussian window, zero padding at the border, each channel by itself [3DGS].
    Args:
        image: Rendered colour in [0, 1], [H, W, 3].
        target: True colour in [0, 1], [H, W, 3].
    Raises:
        ValueError: The shapes differ.
    Differs: Libraries that crop the border or use a uniform window give other values.
    """
    return float(ssim_map(image, target).mean())


def ssim_map(image: Tensor, target: Tensor) -> Tensor:
    """Return the structural similarity at every pixel and channel, float64 [H, W, 3]; see `ssim`."""
    _require_same_shape(image, target)
    a, b = (np.ascontiguousarray(x.cpu().double().numpy()) for x in (image, target))
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return torch.from_numpy(luminance * structure)


def _blur(image: np.ndarray) -> np.ndarray:
    """Return an image [H, W, 3] under the Gaussian window, same size, zero beyond the border."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-(offsets**2) / (2 * SIGMA**2))
    window /= window.sum()
    # OpenCV takes a fortieth of the time of torch's convolution in double precision on a CPU.
    return cv2.sepFilter2D(image, cv2.CV_64F, window, window, borderType=cv2.BORDER_CONSTANT)


def _require_same_shape(image: Tensor, target: Tensor) -> None:
    if image.shape != target.shape or image.ndim != 3:
        raise ValueError(f"images must be [H, W, 3] twice, received {list(image.shape)} and {list(target.shape)}")
