"""Gaussians are no needles: axes of one Gaussian differ in length by a bounded factor."""

from diff_gaussian_rasterization import RasterOutput
from torch import Tensor

from unified_lift.model.gaussians import Gaussians
from unified_lift.train.losses.base import GeometryLoss
from unified_lift.types import View

MAX_RATIO = 10.0  # longest over shortest axis that costs nothing [Splatfacto]
_MOST = 30.0  # of the logarithm of the ratio, so that a Gaussian without thickness has a finite loss


def needle(out: RasterOutput, gaussians: Gaussians, view: View) -> Tensor:
    """Return the mean of max(longest / shortest axis, r) - r over the Gaussians, r = `MAX_RATIO`, a scalar.

    Source: PhysGaussian (Xie et al. 2024), its anisotropy regulariser; Splatfacto, which weights it 0.1 in every 10th
        step. Gradient: to the scales.
    """
    longest, shortest = gaussians.log_scales.amax(dim=1), gaussians.log_scales.amin(dim=1)
    ratio = (longest - shortest).clamp(max=_MOST).exp()
    return (ratio.clamp(min=MAX_RATIO) - MAX_RATIO).mean()


LOSS = GeometryLoss("needle", needle)
