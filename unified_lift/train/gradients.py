"""Gradients of several views that become one step, and how processes share them out."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import torch
from diff_gaussian_rasterization import PixelWeights, scatter
from torch import Tensor

from unified_lift.ranks import Ranks

_ALIGNMENT = 64  # floats; kernels read four at once


class GradientSums:
    """Zeros to add gradients to, side by side in memory, so that processes add up all of them at once.

    Attributes:
        flat: All of them, [M].
        parts: By name, of the shapes asked for; views of `flat`.
    """

    def __init__(self) -> None:
        """Take no memory yet."""
        self.flat = torch.zeros(0)
        self.parts: dict[str, Tensor] = {}

    def begin(self, shapes: Mapping[str, Sequence[int]], device: torch.device) -> dict[str, Tensor]:
        """Return the parts, float32 zeros of these names and shapes; memory is kept from step to step."""
        if {name: tuple(part.shape) for name, part in self.parts.items()} == {n: tuple(s) for n, s in shapes.items()}:
            self.flat.zero_()
            return self.parts
        self.parts, self.flat = {}, torch.zeros(0)  # before new memory is asked for
        sizes = [math.prod(shape) for shape in shapes.values()]
        begins = [0, *accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]
        self.flat = torch.zeros(begins[-1], device=device)
        for (name, shape), begin, size in zip(shapes.items(), begins, sizes, strict=False):
            self.parts[name] = self.flat[begin : begin + size].view(*shape)
        return self.parts


Scatter = Callable[[Tensor, Tensor], object]
"""Adds to a total [N, D] what Gaussians collect from values [P, D] of the pixels of a view, by their weights."""


def scatter_to(weights: PixelWeights, values: Tensor, total: Tensor, *, rows: Tensor | None = None) -> None:
    """Do what a `Scatter` does, by the blending weights of the pixels, or by some `rows` of them."""
    total.add_(scatter(weights, values, len(total), rows=rows))


@torch.no_grad()
def spread(ranks: Ranks, slopes: Tensor, scatters: Sequence[Scatter], parts: Sequence[Tensor], total: Tensor) -> None:
    """Add to `total`, [N, D], the gradient of features by the mean loss of several views; the same in all processes.

    The derivatives by the features of pixels are exchanged, which are few, and the transposed blend of all views is
    done by all. On a GPU it is equal up to the order of sums.

    Args:
        slopes: Derivatives of this process's views, zeros of the others, all in one memory.
        scatters, parts: Of each view: how its pixels' values come to the Gaussians, and its part of `slopes`, [P, D].
    """
    ranks.add(slopes)
    slopes.div_(ranks.batch)
    for add, part in zip(scatters, parts, strict=True):
        add(part, total)
