"""The most alike of the points that may be the same: its definition, and the kernel of the CPU."""

from ctypes import c_int32, c_void_p
from typing import NamedTuple

import torch
from diff_gaussian_rasterization.native import CPU, address, automatic
from torch import Tensor

from unified_lift.shapes import check_shapes

CPU.declare({"dgr_nearest_two": [c_void_p] * 5 + [c_int32] * 3 + [c_void_p] * 3}, returns=None)


class Nearest(NamedTuple):
    """For each of K points: row of the most alike, how alike it and the next are, int32 [K]; -1 where there is none."""

    row: Tensor
    best: Tensor
    second: Tensor


def nearest_two(
    angle: Tensor, descriptors: Tensor, angle2: Tensor, reach2: Tensor, descriptors2: Tensor, *, defined: bool = False
) -> Nearest:
    """Return the most alike of those of L points that lie within reach of each of K points, and how alike the next is.

    How alike two are is the dot product of their descriptors. All these numbers are whole and exact, so that every
    machine, device and number of threads finds the same.

    Args:
        angle: Place of each point on a line, float32 [K].
        descriptors: What it looks like, uint8 [K, D], D at most 256.
        angle2: Places of the points to choose from, float32 [L].
        reach2: How far from its place each of them may be, float32 [L]; NaN or negative = never taken.
        descriptors2: What they look like, uint8 [L, D].
        defined: Compute by the definition where there is a kernel as well.
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
    best, row = alike.max(dim=1)
    alike.scatter_(1, row[:, None], -1.0)
    row = torch.where(best < 0, -1, row)
    return Nearest(*(found.int() for found in (row, best, alike.amax(dim=1))))
