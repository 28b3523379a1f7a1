"""How opaque the Gaussians are: those that no photo asks for fade."""

from diff_gaussian_rasterization import RasterOutput
from torch import Tensor

from unified_lift.model.gaussians import Gaussians
from unified_lift.train.losses.base import GeometryLoss
from unified_lift.types import View


def opacity_loss(out: RasterOutput, gaussians: Gaussians, view: View) -> Tensor:
    """Return the mean opacity of all Gaussians, a scalar.

    Source: Kheradmand et al. 2024 (3DGS-MCMC), Eq. 10, first term.
    """
    return gaussians.opacities.mean()


def _gradient(gaussians: Gaussians) -> dict[str, Tensor]:
    opacities = gaussians.opacities
    return {"logit_opacities": opacities * (1 - opacities) / len(gaussians)}


LOSS = GeometryLoss("opacity", opacity_loss, gradient=_gradient)
