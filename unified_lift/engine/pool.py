"""The pixels that lift steps draw from, and their blending weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from diff_gaussian_rasterization import PixelWeights
from torch import Tensor

from unified_lift.engine.views import SegmentMaps, ViewSource
from unified_lift.model.gaussians import Gaussians
from unified_lift.ops.draws import StepGenerator
from unified_lift.rendering import blending_weights
from unified_lift.types import Camera


class Pooled(NamedTuple):
    """The pool of one view.

    Attributes:
        slot: Segment of each pixel, rising, -1 = no label, int32 [M].
        num_segments: S of the view; some may have no pixel here.
        rows: Where each pixel stands, y * width + x, int32 [M].
        weights: Which Gaussians make up each pixel, M rows; None where not all weights fit.
    """

    slot: Tensor
    num_segments: int
    rows: Tensor
    weights: PixelWeights | None


class PixelPool:
    """For every view, a part of its pixels that stands for all, each segment with its share. Made at first use, kept.

    A lift visits a pixel of a room about once: the weights of all would take memory for nothing.
    """

    def __init__(
        self,
        views: ViewSource,
        cameras: Sequence[Camera],
        gaussians: Gaussians,
        maps: SegmentMaps,
        draws: StepGenerator,
        *,
        size: int,
        min_weight: float,
        budget_mb: int,
    ) -> None:
        """Make none yet.

        Args:
            views: The views, with segments.
            cameras: Their cameras.
            gaussians: Frozen geometry.
            maps: Segments of the pixels, in the order of their slots.
            draws: Randomness; the negative steps are the pools'.
            size: Most pixels of a view.
            min_weight: Smaller weights are left out.
            budget_mb: Weights are kept if they are expected, from the first view, to fit in so many MiB.
        """
        self._views, self._cameras, self._gaussians = views, cameras, gaussians
        self._maps, self._draws, self._size, self._min_weight = maps, draws, size, min_weight
        self._budget = budget_mb * 2**20
        self._made: dict[int, Pooled] = {}
        self.keeps_weights = True

    def __len__(self) -> int:
        return len(self._cameras)

    def of(self, index: int) -> Pooled:
        """Return the pool of view `index`."""
        if not self._made:
            first = self._make(0)
            if first.weights.nbytes * len(self) > self._budget:
                self.keeps_weights, first = False, first._replace(weights=None)
            self._made[0] = first
        if index not in self._made:
            self._made[index] = self._make(index)
        return self._made[index]

    def weights_at(self, index: int, rows: Tensor) -> PixelWeights:
        """Return the weights of pixels `rows` (y * width + x, [P]) of a view, computed now."""
        camera, rows = self._cameras[index], rows.long()
        pixels = torch.stack([rows % camera.width, rows // camera.width], dim=1)
        return blending_weights(self._gaussians, camera, pixels=pixels, min_weight=self._min_weight)

    def smallest(self) -> int:
        """Return the size of the smallest pool; makes all."""
        return min(len(self.of(index).slot) for index in range(len(self)))

    def most_segments(self) -> int:
        """Return the largest number of segments of a view; makes all pools."""
        return max(self.of(index).num_segments for index in range(len(self)))

    def _make(self, index: int) -> Pooled:
        slot, num_segments, rows = self._maps.of(index, self._views.get(index))
        if len(slot) > self._size:
            generator = self._draws.at(-1 - index, slot.device)
            chosen = stratified(len(slot), self._size, generator=generator, device=slot.device)
            slot, rows = slot.index_select(0, chosen), rows.index_select(0, chosen)
        weights = self.weights_at(index, rows) if self.keeps_weights else None
        return Pooled(slot, num_segments, rows, weights)


def stratified(count: int, wanted: int, *, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return one random number from each of `wanted` equal parts of [0, count), rising, int64 [wanted].

    Every number is as likely as in independent draws. From pixels in the order of their segments, each segment gets
    its share to within two pixels, and neighbours in the sample belong to one segment, as the losses' kernels like it.
    """
    place = _numbers(wanted, device) + torch.rand(wanted, generator=generator, device=device)
    return place.mul_(count / wanted).long().clamp_(max=count - 1)


@functools.lru_cache(maxsize=4)
def _numbers(count: int, device: torch.device) -> Tensor:
    """Return 0, 1, ... count - 1, float64 [count]: float32 would round the pixels of a large photo."""
    return torch.arange(count, dtype=torch.float64, device=device)
