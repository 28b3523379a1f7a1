"""Lift stage: features and codebook on frozen geometry.

With geometry frozen a rendered feature is a fixed linear map of the Gaussian features. So a step needs no colour, no
SSIM, and only the sampled pixels; the map (the blending weights) is computed once per view if it fits in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from diff_gaussian_rasterization import PixelWeights, blend
from torch import Tensor

from unified_lift.engine.settings import LiftSettings
from unified_lift.engine.stage import Stage
from unified_lift.engine.terms import weighted_sum
from unified_lift.engine.views import SegmentMaps, ViewSource
from unified_lift.methods.base import Method, Observation
from unified_lift.model.gaussians import Gaussians
from unified_lift.ops.draws import StepGenerator
from unified_lift.rendering import blending_weights, render
from unified_lift.types import Camera, Scene, UserError, View


class WeightCache:
    """Blending weights of training views, kept in memory if all of them fit."""

    def __init__(self, gaussians: Gaussians, cameras: list[Camera], *, min_weight: float, budget_mb: int) -> None:
        """Decide from the first view whether all fit in `budget_mb` MiB."""
        self.gaussians, self.cameras, self.min_weight = gaussians, cameras, min_weight
        self.kept: dict[int, PixelWeights] = {}
        first = self._compute(0, None)
        self.keeps_all = first.nbytes * len(cameras) <= budget_mb * 2**20
        if self.keeps_all:
            self.kept[0] = first

    def features(self, index: int, rows: Tensor) -> Tensor:
        """Return the rendered features of view `index` at the pixels `rows` (y * width + x, int64 [P]), [P, D].

        Gradient: to the features of the Gaussians.
        """
        if self.keeps_all:
            return blend(self._all_pixels(index), self.gaussians.features, rows=rows)
        width = self.cameras[index].width
        pixels = torch.stack([rows % width, rows // width], dim=1)
        return blend(self._compute(index, pixels), self.gaussians.features)

    @torch.no_grad()
    def most_features(self, index: int, rows: Tensor) -> Tensor:
        """Return the same for most pixels of a view, without gradient: rendering it is cheaper than its weights."""
        if self.keeps_all:
            return self.features(index, rows)
        return render(self.gaussians, self.cameras[index]).features.flatten(0, 1).index_select(0, rows)

    def _all_pixels(self, index: int) -> PixelWeights:
        if index not in self.kept:
            self.kept[index] = self._compute(index, None)
        return self.kept[index]

    def _compute(self, index: int, pixels: Tensor | None) -> PixelWeights:
        return blending_weights(self.gaussians, self.cameras[index], pixels=pixels, min_weight=self.min_weight)


class LiftStage(Stage):
    """One view per step: sampled pixels, the method's losses, Adam on features and on the method's parameters."""

    name = "lift"

    def __init__(
        self, scene: Scene, gaussians: Gaussians, method: Method, settings: LiftSettings, *, seed: int
    ) -> None:
        """Freeze the geometry, start the features if there are none of the method's width.

        Raises:
            UserError: No training view has a mask.
        """
        labelled = [view for view in scene.train if view.segments is not None]
        if not labelled:
            raise UserError(f"{scene.name}: no training view has a mask, nothing can be lifted; check --object_path")
        keep = scene.kept_on == gaussians.device.type
        self.maps = SegmentMaps(ignore_zero=method.ignore_zero, keep=keep, by_slot=True)
        self.cameras = [view.camera for view in labelled]
        self.gaussians, self.method, self.settings = gaussians, method, settings
        views = ViewSource(labelled, kept_on=scene.kept_on, device=gaussians.device, fields=("segments", "valid"))
        super().__init__(num_steps=settings.lift_iterations, views=views, seed=seed)
        self.draws = StepGenerator(seed)
        gaussians.freeze_geometry()
        if gaussians.feature_dim != method.feature_dim:
            gaussians.set("features", method.initial_features(len(gaussians)).to(gaussians.device))
        self._cache: WeightCache | None = None

    @property
    def cache(self) -> WeightCache:
        """Return the weight cache, made at first use because it depends on the final geometry."""
        if self._cache is None:
            self._cache = WeightCache(
                self.gaussians,
                self.cameras,
                min_weight=self.settings.lift_min_weight,
                budget_mb=self.settings.lift_cache_mb,
            )
        return self._cache

    def train_step(self, step: int) -> dict[str, Tensor]:
        """Do 0-based `step` and return the unweighted, detached terms."""
        progress = self.progress(step)
        self.method.before_step(progress, self.observe)
        self.mark("view")
        index, view = self.next_view()
        self.mark("forward")
        features, slot, num_segments = self._sample(index, view, step)
        self.mark("losses")
        terms = self.method.losses(features, slot, num_segments, progress)
        total = weighted_sum(terms, self.method.weights)
        self.mark("backward")
        self.gaussians.zero_grad()
        total.backward()
        self.mark("update")
        self.adam.step(self.gaussians.table, {"features": self.method.rates(progress)["features"]})
        self.update_method(self.method, progress)
        return {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def observe(self) -> Iterator[Observation]:
        """Walk over all labelled training views: rendered features, slots and number of segments."""
        for index, view in enumerate(self.views.all()):
            slot, num_segments, rows = self.maps.of(index, view)
            yield self.cache.most_features(index, rows.long()), slot, num_segments

    def _sample(self, index: int, view: View, step: int) -> Observation:
        """Return features and slots of the pixels that a step trains on, in the order of their slots."""
        slot, num_segments, rows = self.maps.of(index, view)
        if len(slot) > self.settings.lift_pixels:
            generator = self.draws.at(step, slot.device)
            chosen = stratified(len(slot), self.settings.lift_pixels, generator=generator, device=slot.device)
            slot, rows = slot.index_select(0, chosen), rows.index_select(0, chosen)
        return self.cache.features(index, rows.long()), slot, num_segments


def stratified(count: int, wanted: int, *, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return one random number from each of `wanted` equal parts of [0, count), rising, int64 [wanted].

    Every number is as likely as in independent draws. From pixels in the order of their segments, each segment gets its
    share to within one pixel, and neighbours in the sample belong to one segment, as the kernels of the losses like it.
    """
    place = _numbers(wanted, device) + torch.rand(wanted, generator=generator, device=device)
    return place.mul_(count / wanted).long()


@functools.lru_cache(maxsize=4)
def _numbers(count: int, device: torch.device) -> Tensor:
    """Return 0, 1, ... count - 1, float64 [count]: float32 would round the pixels of a large photo."""
    return torch.arange(count, dtype=torch.float64, device=device)
