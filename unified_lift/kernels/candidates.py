"""The most alike of the points that may be the same: its definition, and the kernel of the CPU."""

from ctypes import c_int32, c_void_p
from typing import NamedTuple

import torch
from diff_gaussian_rasterization.native import CPU, address, automatic
from torch import Tensor

from unified_lift.shapes import check_shapes

CPU.declare({"dgr_nearest_two": [c_void_p] * 5 + [c_int32] * 3 + [c_void_p] * 3}, returns=None)


class Nearest(NamedTuple):
    """For each of K points: index of the most alike, its similarity and that of the runner-up, int32 [K]; -1 = none."""

    index: Tensor
    best: Tensor
    second: Tensor


def nearest_two(
    angle: Tensor, descriptors: Tensor, angle2: Tensor, reach2: Tensor, descriptors2: Tensor, *, defined: bool = False
) -> Nearest:
    """Return the most alike of those of L points that lie within reach of each of K points, and how alike the next is.

    Args:
        angle: Place of each point on a line, float32 [K].
        descriptors: What it looks like, uint8 [K, D]; D at most 512, so that sums are exact.
        angle2: Places of the points to choose from, float32 [L].
        reach2: How far from its place each of them may be, float32 [L]; negative = never taken.
        descriptors2: uint8 [L, D].
        defined: Compute by the definition where there is a kernel as well.
    Returns:
        Of most dot product. All numbers are whole, so that every machine, device and number of threads finds the same.
    Raises:
        ValueError: The shapes do not fit.
    """
    check_shapes({
        "angle": (angle, "K"), "descriptors": (descriptors, "K D"), "angle2": (angle2, "L"),
        "reach2": (reach2, "L"), "descriptors2": (descriptors2, "L D"),
    })  # fmt: skip
    inputs = [tensor.contiguous() for tensor in (angle, descriptors, angle2, reach2, descriptors2)]
    if not defined and automatic(angle)[0] == "cpu":
        found = Nearest(*torch.empty(3, len(angle), dtype=torch.int32))
        CPU.dgr_nearest_two(*map(address, inputs), *descriptors.shape, len(angle2), *map(address, found))
        return found
    return _defined(*inputs)


def _defined(angle: Tensor, descriptors: Tensor, angle2: Tensor, reach2: Tensor, descriptors2: Tensor) -> Nearest:
    if not len(angle2):
        return Nearest(*torch.full((3, len(angle)), -1, dtype=torch.int32, device=angle.device))
    alike = descriptors.float() @ descriptors2.float().T
    alike[~((angle[:, None] - angle2).abs() <= reach2)] = -1
    best, index = alike.max(dim=1)
    alike.scatter_(1, index[:, None], -1.0)
    index = torch.where(best < 0, -1, index)
    return Nearest(*(found.int() for found in (index, best, alike.amax(dim=1))))
