"""What a further loss of the geometry stage is."""

from collections.abc import Callable
from typing import NamedTuple

from diff_gaussian_rasterization import RasterOutput
from torch import Tensor

from unified_lift.model.gaussians import Gaussians
from unified_lift.types import View


class GeometryLoss(NamedTuple):
    """How a loss is found: `LOSS = GeometryLoss(...)` in a file of this folder; `--loss_weights NAME=0.1` adds it.

    Its function returns an unweighted scalar for a rendered view, the Gaussians and the view with its photo. The maps
    of the rendered view (image, alpha, depth) and the parameters of the Gaussians take gradients. One that depends on
    the parameters alone may say its derivative itself, by name of the parameter: a step then needs no graph for it,
    which on a GPU takes longer than the rest.
    """

    name: str  # what logs and --loss_weights call it
    function: Callable[[RasterOutput, Gaussians, View], Tensor]
    needs_points: bool = False  # whether it looks at `view.points`, which are found only if a chosen loss does
    gradient: Callable[[Gaussians], dict[str, Tensor]] | None = None
