"""Few Gaussians that stand for many while a camera moves, and how many of them a machine draws in time."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from unified_lift.model.gaussians import Gaussians

ALL = 2**17  # Gaussians that any machine draws fast enough: so many are never thinned
_GROWTH = 0.4  # power of the share that is left by which those shrank: 0.5 keeps the area, but surfaces overlap
_SECONDS = 0.07  # of a moving frame, for its Gaussians; the size of the picture takes care of the rest
_FIRST, _FACTOR, _ENOUGH = 2**16, 4, 0.5  # drawn first, then, and the share of the time from which it tells the rest


@torch.no_grad()
def thinned(gaussians: Gaussians, most: int) -> tuple[Tensor, Tensor]:
    """Return which Gaussians, at most `most`, stand for all, rising, int64 [M]; and what their sizes are times, [M].

    Each is drawn with a probability in proportion to opacity times diameter, 1 for the largest, by systematic sampling
    (Madow 1949) along the table. Those that stand for 1 / probability others grow by its power 0.4, which of several
    powers, and of making them more opaque instead, gave pictures nearest to the whole [ours, 2026-11-30].
    """
    a, b, c = gaussians.log_scales.unbind(dim=1)  # without a sum of three: a disc has a logarithm of -inf
    diameter = (0.5 * torch.maximum(torch.maximum(a + b, b + c), a + c)).exp()
    weight = (gaussians.opacities * diameter).nan_to_num(0.0, 0.0, 0.0).double()
    bound, certain = weight.sum() / most, -1
    while len(weight) > most:  # until no further one is larger than what each of the rest stands for
        is_small = weight < bound
        if (found := len(weight) - int(is_small.sum())) in (certain, most):
            break
        certain, bound = found, weight[is_small].sum() / (most - found)
    probability = (weight / bound).clamp(max=1.0).nan_to_num(1.0) if len(weight) > most else torch.ones_like(weight)
    passed = probability.cumsum(0).floor()
    rows = (passed.diff(prepend=passed.new_zeros(1)) > 0).nonzero()[:most, 0]
    return rows, probability.index_select(0, rows).pow(-_GROWTH).float()


def most_in_time(draw: Callable[[int], object], count: int, *, clock: Callable[[], float] = time.perf_counter) -> int:
    """Return how many of `count` Gaussians are drawn in 0.07 s, 0 = all; `draw` draws at most so many."""
    most = _FIRST
    while count > ALL:
        draw(most)  # makes ready what later frames need not
        start = clock()
        draw(most)
        spent = max(clock() - start, 1e-6)
        if spent >= _ENOUGH * _SECONDS or most >= count:
            most = max(ALL // 2, int(most * _SECONDS / spent))
            return most if most < count else 0
        most *= _FACTOR
    return 0
