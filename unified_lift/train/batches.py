"""The pixels that lift steps draw from, and their blending weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from diff_gaussian_rasterization import PixelWeights
from torch import Tensor

from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import blending_weights
from unified_lift.ops.rng import StepRng
from unified_lift.train.views import SegmentMaps, ViewSource
from unified_lift.types import Camera

MIB = 2**20


class Pooled(NamedTuple):
    """The pool of one view.

    Attributes:
        slot: Segment of each pixel, rising, -1 = no label, int32 [M]; a pixel of a small segment may stand here often.
        num_segments: S of the view; some may have no pixel here.
        rows: Where each pixel stands, y * width + x, int32 [M].
        weights: Which Gaussians make up each pixel, M rows; None where not all weights fit.
        is_whole: Whether these are all pixels of the view.
    """

    slot: Tensor
    num_segments: int
    rows: Tensor
    weights: PixelWeights | None
    is_whole: bool


class PixelPool:
    """For every view, a part of its pixels that stands for all, each segment with its share; renewed now and then.

    Steps need the blending weights of the pixels they draw. Kept for a pool, they are computed once for some draws of
    each pixel instead of at every step. A pool that never changed would leave the Gaussians that only other pixels see
    untrained (docs/experiments.md), so after `DRAWS` draws of each pixel others take their place.
    """

    DRAWS = 2

    def __init__(
        self,
        views: ViewSource,
        cameras: Sequence[Camera],
        gaussians: Gaussians,
        maps: SegmentMaps,
        draws: StepRng,
        *,
        pixels: int,
        size: int,
        min_samples: int,
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
            pixels: Pixels that a step draws.
            size: Most pixels of a view; 0 = as many as the budget keeps the weights of.
            min_samples: Pixels of a segment that a step draws at least, or all it has; see `lift_min_samples`.
            min_weight: Smaller weights are left out.
            budget_mb: MiB for the weights of all pools, as far as a few views tell.
        """
        self._views, self._cameras, self._gaussians = views, cameras, gaussians
        self._maps, self._draws, self._min_weight, self._min_samples = maps, draws, min_weight, min_samples
        self._pixels, self._wanted, self._budget = pixels, max(size, pixels) if size else 0, budget_mb * MIB
        self._made: dict[int, tuple[int, Pooled]] = {}
        self._largest = max(camera.width * camera.height for camera in cameras)
        self._extremes: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._cameras)

    @functools.cached_property
    def affordable(self) -> int:
        """Number of pixels of each view whose weights fit in the budget, judged by some pixels of a few views."""
        num_bytes = num_pixels = listed = different = 0
        for index in {len(self) * part // 4 for part in range(4)}:
            rows = self._choose(index, 0, self._pixels).rows
            num_bytes, num_pixels = num_bytes + self.weights_at(index, rows).nbytes, num_pixels + len(rows)
            rows = self._choose(index, 0, self._largest).rows  # here with what stands repeatedly
            listed, different = listed + len(rows), different + len(rows.unique())
        bytes_of_a_pixel = num_bytes / max(num_pixels, 1) * listed / max(different, 1)
        return int(self._budget / len(self) / max(bytes_of_a_pixel, 1e-9))

    @property
    def size(self) -> int:
        """Most pixels of a view."""
        fallback = self.affordable if self.affordable >= min(self._pixels, self._largest) else self._pixels * self.DRAWS
        return self._wanted or fallback

    @property
    def keeps_weights(self) -> bool:
        """Whether pools come with weights: they fit."""
        return self.affordable >= min(self.size, self._largest)

    @property
    def visits_of_a_pool(self) -> int:
        """Number of visits of a view after which its pool is renewed."""
        return max(1, self.DRAWS * self.size // self._pixels)

    def of(self, index: int, visit: int = 0) -> Pooled:
        """Return the pool of view `index` at its 0-based `visit`."""
        generation, pooled = self._made.get(index, (-1, None))
        is_whole = pooled is not None and pooled.is_whole
        wanted = 0 if is_whole else visit // self.visits_of_a_pool
        if generation != wanted:
            pooled = self._make(index, wanted)
            self._made[index] = wanted, pooled
        return pooled

    def weights_at(self, index: int, rows: Tensor) -> PixelWeights:
        """Return the weights of pixels `rows` (y * width + x, [P]) of a view, computed now."""
        camera, rows = self._cameras[index], rows.long()
        pixels = torch.stack([rows % camera.width, rows // camera.width], dim=1)
        return blending_weights(self._gaussians, camera, pixels=pixels, min_weight=self._min_weight)

    def extremes(self, visit: int) -> tuple[int, int]:
        """Return the size of the smallest pool and the most segments of a view; the first call makes all pools."""
        if self._extremes is None:
            pools = [self.of(index, visit) for index in range(len(self))]
            self._extremes = min(len(pool.slot) for pool in pools), max(pool.num_segments for pool in pools)
        return self._extremes

    def _make(self, index: int, generation: int) -> Pooled:
        pooled = self._choose(index, generation, self.size)
        return pooled._replace(weights=self.weights_at(index, pooled.rows)) if self.keeps_weights else pooled

    def _choose(self, index: int, generation: int, most: int) -> Pooled:
        """Return at most `most` different pixels of a view, without weights."""
        slot, num_segments, rows = self._maps.of(index, self._views.get(index))
        is_whole = len(slot) <= most
        if not is_whole:
            generator = self._draws.at(-1 - index - generation * len(self), slot.device)
            chosen = stratified(len(slot), most, generator=generator, device=slot.device)
            slot, rows = slot.index_select(0, chosen), rows.index_select(0, chosen)
        if self._min_samples and len(slot) > self._pixels:
            copies = copies_for(slot, num_segments, samples=self._min_samples, share=self._pixels / len(slot))
            slot, rows = slot.repeat_interleave(copies), rows.repeat_interleave(copies)
        return Pooled(slot, num_segments, rows, None, is_whole)


def copies_for(slot: Tensor, num_segments: int, *, samples: int, share: float) -> Tensor:
    """Return how often each pixel must stand in a list for its segment to get its samples, int64 [P].

    Args:
        slot: Segment of each pixel, -1 = no label, int32 [P].
        num_segments: S.
        samples: Pixels to be drawn of every segment, or all it has.
        share: Of the list that is drawn.
    """
    counts = torch.bincount(slot + 1, minlength=num_segments + 1)  # unlabelled pixels first
    wanted = counts.clamp(max=samples)
    copies = (wanted / (counts * share).clamp(min=1e-9)).ceil().long().clamp(min=1)
    copies[0] = 1
    return copies[slot.long() + 1]


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
