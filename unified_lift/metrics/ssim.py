"""SSIM as the 3DGS family reports it."""

import cv2
import numpy as np
import torch
from torch import Tensor

from unified_lift.metrics.base import Metric, ViewBundle, require_same_shape

WINDOW, SIGMA = 11, 1.5  # the Gaussian window of Wang et al. 2004, pixels
K1, K2 = 0.01, 0.03  # its stabilising constants for a data range of 1


def ssim(image: Tensor, target: Tensor) -> float:
    """Return the structural similarity of two pictures in [0, 1], [H, W, 3], mean over all pixels and channels.

    Source: Wang et al. 2004; Gaussian window, zero padding at the border, each channel by itself [3DGS].
    Differs: Libraries that crop the border or use a uniform window give other values.
    """
    return float(ssim_map(image, target).mean())


def ssim_map(image: Tensor, target: Tensor) -> Tensor:
    """Return the structural similarity at every pixel and channel, float64 [H, W, 3]; a ValueError: shapes differ."""
    require_same_shape(image, target)
    offsets = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-(offsets**2) / (2 * SIGMA**2))
    window /= window.sum()

    def blur(picture: np.ndarray) -> np.ndarray:
        # OpenCV takes a fortieth of the time of torch's convolution in double precision on a CPU.
        return cv2.sepFilter2D(picture, cv2.CV_64F, window, window, borderType=cv2.BORDER_CONSTANT)

    a, b = (np.ascontiguousarray(x.cpu().double().numpy()) for x in (image, target))
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, covariance = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + K1**2) / (mean_a**2 + mean_b**2 + K1**2)
    structure = (2 * covariance + K2**2) / (var_a + var_b + K2**2)
    return torch.from_numpy(luminance * structure)


def _of_view(bundle: ViewBundle) -> float:
    valid = bundle.valid[..., None]  # neighbours have a share, so pixels that do not count are black in both pictures
    return float(ssim_map(bundle.image * valid, bundle.photo * valid)[bundle.valid].mean())


METRIC = Metric(name="SSIM", label="structural similarity", unit="", is_headline=True, function=_of_view)
