"""How large the Gaussians are: what is not needed shrinks, and the room is left to others."""

from diff_gaussian_rasterization import RasterOutput
from torch import Tensor

from unified_lift.model.gaussians import Gaussians
from unified_lift.train.losses.base import GeometryLoss
from unified_lift.types import View


def scale_loss(out: RasterOutput, gaussians: Gaussians, view: View) -> Tensor:
    """Return the mean scale of all Gaussians over their three axes, world units, a scalar.

    Source: Kheradmand et al. 2024 (3DGS-MCMC), Eq. 10, second term.
    """
    return gaussians.scales.mean()


def _gradient(gaussians: Gaussians) -> dict[str, Tensor]:
    return {"log_scales": gaussians.scales / (3 * len(gaussians))}


LOSS = GeometryLoss("scale", scale_loss, gradient=_gradient)
