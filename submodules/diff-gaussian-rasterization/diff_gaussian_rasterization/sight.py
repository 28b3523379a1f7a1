"""Which Gaussians a view may show, told without rendering it."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import POINTER, byref, c_void_p

import torch
from torch import Tensor

from .cuda.frame import Scene
from .native import CUDA, address, pick, place
from .types import ALPHA_MIN, FRUSTUM_MARGIN, LOW_PASS, NEAR

_SLACK = 1.0  # pixels, for what rendering rounds otherwise

CUDA.declare({"dgr_cuda_in_sight": [POINTER(Scene), c_void_p]})


@torch.no_grad()
def in_sight(
    parameters: Mapping[str, Tensor], viewmat: Tensor, K: Tensor, width: int, height: int,
    *, antialiased: bool = False, implementation: str = "auto",
) -> Tensor:  # fmt: skip
    """Return whether a view may show each Gaussian, bool [N]: False only for those that `rasterize` leaves out.

    Args:
        parameters: means, quats, log_scales and logit_opacities as in `TrainingStep.forward`.
        viewmat, K, width, height, antialiased: As there.
        implementation: "auto", "reference", "cpu" or "cuda", which is exact; on a GPU the host does not wait.
    """
    functions = {"reference": _bounded, "cpu": _bounded, "cuda": _exact}
    return pick(implementation, parameters["means"], **functions)(
        parameters, viewmat, K, width, height, antialiased=antialiased
    )


def _bounded(
    parameters: Mapping[str, Tensor], viewmat: Tensor, K: Tensor, width: int, height: int, *, antialiased: bool
) -> Tensor:
    """Return it by a bound.

    The ellipse of a Gaussian lies in a circle about its projected centre, of sqrt(2 ln(255 o)) standard deviations. The
    largest of these on the screen is at most sqrt(|J|^2 s^2 + 0.3) for the largest scale s, J the Jacobian of the
    projection: |J|^2 <= (f / z)^2 (1 + (x / z)^2 + (y / z)^2), at the place in or near the picture where J is taken.
    """
    del antialiased  # which only lowers opacities
    centre = parameters["means"] @ viewmat[:3, :3].T + viewmat[:3, 3]
    opacity, largest = parameters["logit_opacities"].sigmoid(), parameters["log_scales"].amax(dim=1).exp()
    inside, depth = (centre[:, 2] > NEAR) & (opacity >= ALPHA_MIN), centre[:, 2].clamp(min=NEAR)
    (fx, _, cx), (_, fy, cy) = K[:2].tolist()
    at, squares, axes = [], torch.ones_like(depth), ((fx, cx, width), (fy, cy, height))
    for axis, (focal, middle, size) in enumerate(axes):
        slope, margin = centre[:, axis] / depth, FRUSTUM_MARGIN * 0.5 * size
        squares += slope.clamp((-middle - margin) / focal, (size - middle + margin) / focal).square()
        at.append(focal * slope + middle)
    spread = (max(fx, fy) * largest / depth).square() * squares + LOW_PASS
    reach = (2 * (opacity / ALPHA_MIN).clamp(min=1).log() * spread).sqrt() + _SLACK
    for place_on_axis, (_, _, size) in zip(at, axes):
        inside &= (place_on_axis + reach > 0) & (place_on_axis - reach < size)
    return inside


def _exact(
    parameters: Mapping[str, Tensor], viewmat: Tensor, K: Tensor, width: int, height: int, *, antialiased: bool
) -> Tensor:
    """Return it by the test that rendering makes."""
    names = ("means", "quats", "log_scales", "logit_opacities")
    kept = [*(parameters[name].detach().contiguous() for name in names), viewmat.contiguous(), K.contiguous()]
    num, (device, stream) = kept[0].shape[0], place(kept[0])
    flags = torch.empty(num, dtype=torch.bool, device=kept[0].device)
    scene = Scene(
        num, *(address(t) for t in kept[:4]), None, None, None, address(kept[4]), address(kept[5]), None, None,
        NEAR, 0, -1, 0, width, height, False, device, True, antialiased, stream,
    )  # fmt: skip
    CUDA.dgr_cuda_in_sight(byref(scene), address(flags))
    return flags
