"""The rendered depth is that of the sparse points where these lie: surfaces stay where COLMAP saw them."""

from diff_gaussian_rasterization import RasterOutput
from torch import Tensor

from unified_lift.model.gaussians import Gaussians
from unified_lift.train.losses.base import GeometryLoss
from unified_lift.types import View

_LEAST_ALPHA = 1 / 255  # where less is rendered there is no depth to compare


def depth(out: RasterOutput, gaussians: Gaussians, view: View) -> Tensor:
    """Return the mean of |1 / rendered - 1 / known depth| over the points of a view, over their mean 1 / depth.

    Source: gsplat's `depth_loss`; the rendered depth is the mean by blending weight.
    Differs: gsplat samples bilinearly and multiplies by the scene extent; ours takes the pixel, and has no unit
        whatever the cameras do.
    Gradient: to depth and alpha.
    """
    if view.points is None:
        return out.alpha.new_zeros(())
    column, row, known = view.points.unbind(dim=1)
    pixel = (row * view.camera.width + column).long()
    alpha, blended = (plane.flatten().index_select(0, pixel) for plane in (out.alpha, out.depth))
    seen = (alpha > _LEAST_ALPHA) & (blended > 0)
    error = (alpha / blended.where(seen, 1.0) - 1 / known).abs() * seen
    return error.mean() / (1 / known).mean()


LOSS = GeometryLoss("depth", depth, needs_points=True)
