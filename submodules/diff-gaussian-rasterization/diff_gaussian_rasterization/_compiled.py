"""What the compiled implementations share: everything between the checked arguments and their own kernels."""

from __future__ import annotations

from torch import Tensor
from torch.autograd import Function

from .types import RasterMeta, RasterOutput


def rasterize(
    function: type[Function],
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors_or_sh: Tensor, features: Tensor | None,
    viewmats: Tensor, Ks: Tensor, width: int, height: int,
    *, sh_degree: int | None, backgrounds: Tensor | None, means2d: Tensor | None,
    features_move_geometry: bool, near: float,
) -> RasterOutput:  # fmt: skip
    """Return the maps that `function` renders; the other arguments as in `api.rasterize`, already checked.

    Raises:
        ValueError: A camera tensor requires a gradient.
    """
    if viewmats.requires_grad or Ks.requires_grad:
        raise ValueError(
            "the compiled kernels give no gradient to viewmats and Ks; detach them, or pass implementation='reference'"
        )
    options = {
        "width": width, "height": height, "sh_degree": sh_degree, "near": near,
        "features_move_geometry": features_move_geometry,
    }  # fmt: skip
    image, maps, alpha, depth, radii, centres = function.apply(
        options, means, quats, scales, opacities, colors_or_sh, features, viewmats, Ks, backgrounds, means2d
    )
    return RasterOutput(image, maps, alpha, depth, RasterMeta(radii, centres, options["num_pairs"]))
