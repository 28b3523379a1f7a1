"""PSNR as the 3DGS family reports it."""

import torch
from torch import Tensor

from unified_lift.metrics.base import Metric, ViewBundle, require_same_shape


def psnr(image: Tensor, target: Tensor) -> float:
    """Return the peak signal-to-noise ratio of two pictures in [0, 1], [H, W, 3], in dB; infinite for equal ones.

    Source: -10 log10(mean squared error), over all channels at once. A ValueError: the shapes differ.
    Differs: Training logs of 3DGS average the PSNR of the three channels, which is another number.
    """
    require_same_shape(image, target)
    return float(-10 * torch.log10((image.double() - target.double()).square().mean()))


def _of_view(bundle: ViewBundle) -> float:
    return psnr(bundle.image[bundle.valid][None], bundle.photo[bundle.valid][None])


METRIC = Metric(name="PSNR", label="image quality, dB", unit="dB", limit=None, is_headline=True, function=_of_view)
