"""The pixel batch sampler of the lift: the pixels that steps draw from, with their blending weights."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from diff_gaussian_rasterization import PixelWeights
from torch import Tensor

from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import blending_weights
from unified_lift.modelfolder.settings import LiftSettings
from unified_lift.ops.rng import StepRng
from unified_lift.train.stage import Stage
from unified_lift.train.views import SegmentPixels
from unified_lift.types import Camera


class PixelSampler:
    """For every view, a part of its pixels that represents all, each segment with its share; renewed now and then.

    Steps need the blending weights of their pixels. Kept for a part, they are computed once for some draws of each
    pixel. A part that never changed would leave the Gaussians that only other pixels see untrained
    (docs/experiments.md), so after `DRAWS` draws of each pixel others take their place.

    Attributes:
        size: Most pixels of a view.
        keeps_weights: Whether pixels come with weights: they fit in the budget.
    """

    DRAWS = 2
    _WHOLE = -1  # the generation of all pixels of a view, which none can replace

    def __init__(self, stage: Stage, settings: LiftSettings, rng: StepRng) -> None:
        """Choose none yet. The stage's maps are in the order of slots; of `rng` negative steps are the sampler's."""
        self._stage, self._rng, self._settings, self._pixels = stage, rng, settings, settings.lift_pixels
        self._made: dict[int, tuple[int, SegmentPixels]] = {}
        self._extremes: tuple[int, int] | None = None
        largest = max(camera.width * camera.height for camera in stage.cameras)
        affordable = self._affordable(largest)
        self.size = affordable if affordable >= min(self._pixels, largest) else self._pixels * self.DRAWS
        if settings.lift_pool:
            self.size = max(settings.lift_pool, self._pixels)
        self.keeps_weights = affordable >= min(self.size, largest)
        self.visits_before_renewal = max(1, self.DRAWS * self.size // self._pixels)

    def of(self, index: int, visit: int = 0) -> SegmentPixels:
        """Return the pixels of view `index` at its 0-based `visit`, with weights if all of these fit."""
        if self._is_due(index, visit):
            self.prepare([(index, visit)])
        return self._made[index][1]

    def _is_due(self, index: int, visit: int) -> bool:
        made = self._made.get(index)
        return made is None or made[0] not in (visit // self.visits_before_renewal, self._WHOLE)

    def prepare(self, visits: Sequence[tuple[int, int]], *, then: Sequence[int] = ()) -> None:
        """Choose the pixels of views at their visits, (index, visit), where that is due; processes share it out.

        Views `then` will be asked for next.
        """
        due = dict[int, Callable[[], tuple[int, SegmentPixels]]]()
        for index, visit in visits:
            if self._is_due(index, visit):
                due.setdefault(index, partial(self._new, index, visit // self.visits_before_renewal, then))
        self._made.update(zip(due, self._stage.ranks.each(list(due.values())), strict=True))

    def _new(self, index: int, generation: int, then: Sequence[int]) -> tuple[int, SegmentPixels]:
        slot, num_segments, pixel_ids, is_whole = self._choose(index, generation, self.size, then)
        weights = self.weights_at(index, pixel_ids) if self.keeps_weights else None
        pixels = SegmentPixels(slot, num_segments, pixel_ids, weights)
        return self._WHOLE if is_whole else generation, pixels

    def weights_at(self, index: int, pixel_ids: Tensor) -> PixelWeights:
        """Return the weights of pixels `pixel_ids` of a view, computed now."""
        least = self._settings.lift_min_weight
        return weights_at(self._stage.gaussians, self._stage.cameras[index], pixel_ids, min_weight=least)

    def extremes(self, visit: int) -> tuple[int, int]:
        """Return fewest pixels and most segments of a view; the first call chooses the pixels of all views."""
        if self._extremes is None:
            count, batch = len(self._stage.cameras), self._stage.ranks.batch
            for first in range(0, count, batch):
                some = [(index, visit) for index in range(first, min(first + batch, count))]
                self.prepare(some, then=range(first + batch, min(first + batch + self._stage.views.ahead, count)))
            views = [self.of(index, visit) for index in range(count)]
            self._extremes = min(len(pixels.slot) for pixels in views), max(pixels.num_segments for pixels in views)
        return self._extremes

    def _affordable(self, largest: int) -> int:
        """Return how many pixels of each view have weights that fit in the budget, judged by some of a few views."""
        num_bytes = num_pixels = listed = different = 0
        num_views = len(self._stage.cameras)
        for index in {num_views * part // 4 for part in range(4)}:
            pixel_ids = self._choose(index, 0, self._pixels)[2]
            num_bytes, num_pixels = num_bytes + self.weights_at(index, pixel_ids).nbytes, num_pixels + len(pixel_ids)
            pixel_ids = self._choose(index, 0, largest)[2]  # here with those that are repeated
            listed, different = listed + len(pixel_ids), different + len(pixel_ids.unique())
        bytes_of_a_pixel = num_bytes / max(num_pixels, 1) * listed / max(different, 1)
        return int(self._settings.lift_cache_mb * 2**20 / num_views / max(bytes_of_a_pixel, 1e-9))

    def _choose(
        self, index: int, generation: int, most: int, then: Sequence[int] = ()
    ) -> tuple[Tensor, int, Tensor, bool]:
        """Return slot, number of segments and id of at most `most` different pixels, and whether these are all."""
        slot, num_segments, pixel_ids, *_ = self._stage.maps.of(index, self._stage.views.get(index, then=then))
        assert pixel_ids is not None  # since the maps are in the order of slots
        is_whole = len(slot) <= most
        if not is_whole:
            generator = self._rng.at(-1 - index - generation * len(self._stage.cameras), slot.device)
            chosen = stratified(len(slot), most, generator)
            slot, pixel_ids = slot.index_select(0, chosen), pixel_ids.index_select(0, chosen)
        samples = self._settings.lift_min_samples
        if samples and len(slot) > self._pixels:
            copies = copies_for(slot, num_segments, samples=samples, share=self._pixels / len(slot))
            slot, pixel_ids = slot.repeat_interleave(copies), pixel_ids.repeat_interleave(copies)
        return slot, num_segments, pixel_ids, is_whole


def weights_at(gaussians: Gaussians, camera: Camera, pixel_ids: Tensor, *, min_weight: float = 0.0) -> PixelWeights:
    """Return the blending weights of the pixels y * width + x, [P], of a view; smaller ones than the least are out."""
    x, y = pixel_ids.long() % camera.width, pixel_ids.long() // camera.width
    return blending_weights(gaussians, camera, pixels=torch.stack([x, y], dim=1), min_weight=min_weight)


def copies_for(slot: Tensor, num_segments: int, *, samples: int, share: float) -> Tensor:
    """Return how often each pixel must be in a list of which a `share` is drawn, int64 [P], for its segment to get
    `samples` pixels, or all it has. `slot` is the segment of each pixel, -1 = no label, int32 [P].
    """
    counts = torch.bincount(slot + 1, minlength=num_segments + 1)  # unlabelled pixels first
    wanted = counts.clamp(max=samples)
    copies = (wanted / (counts * share).clamp(min=1e-9)).ceil().long().clamp(min=1)
    copies[0] = 1
    return copies[slot.long() + 1]


def stratified(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Return one random number from each of `wanted` equal parts of [0, count), rising, int64 [wanted].

    Every number is as likely as in independent draws. From pixels in the order of their segments, each segment gets
    its share to within two pixels, and neighbours in the sample belong to one segment, as the losses' kernels like it.
    """
    device = generator.device
    parts = torch.arange(wanted, dtype=torch.float64, device=device)  # float32 would round the pixels of a large photo
    place = parts.add_(torch.rand(wanted, generator=generator, device=device))
    return place.mul_(count / wanted).long().clamp_(max=count - 1)
