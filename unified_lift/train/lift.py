"""Lift stage: features and codebook on frozen geometry.

With geometry frozen a rendered feature is a fixed linear map of the Gaussian features. So a step needs no colour, no
SSIM, and only the sampled pixels; the map (the blending weights) is computed once per view if it fits in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diff_gaussian_rasterization import Sample, blend, lifting
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.methods.base import LabelledView, LiftData, Method, StepInfo, ViewPixels
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import render
from unified_lift.modelfolder.settings import LiftSettings
from unified_lift.ops.rng import StepRng
from unified_lift.ops.segments import dense_slots
from unified_lift.train.batches import PixelPool, Pooled, stratified
from unified_lift.train.graphs import GradientGraph
from unified_lift.train.stage import Stage
from unified_lift.train.terms import weighted_sum
from unified_lift.train.views import SegmentMaps, ViewSource
from unified_lift.types import Camera, Scene

_MIN_STEPS = 2_000
_DRAWS = 3  # of each pixel: fewer lose small objects of large scenes, more fit the errors of the masks


def steps_of(settings: LiftSettings, cameras: Sequence[Camera]) -> int:
    """Return the number of steps of a lift of these labelled views, which the settings may leave to their pixels."""
    if settings.lift_iterations >= 0:
        return settings.lift_iterations
    pixels = sum(camera.width * camera.height for camera in cameras)
    return max(_MIN_STEPS, _DRAWS * pixels // settings.lift_pixels)


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
        views = ViewSource(labelled, kept_on=scene.kept_on, device=gaussians.device, fields=("segments", "valid"))
        self.cameras, self.names = [view.camera for view in labelled], [view.name for view in labelled]
        super().__init__(num_steps=steps_of(settings, self.cameras), views=views, seed=seed)
        self.gaussians, self.method, self.settings = gaussians, method, settings
        self.maps = SegmentMaps(ignore_zero=method.ignore_zero, keep=False, by_slot=True)
        self.draws = StepRng(seed)
        gaussians.freeze_geometry()
        if gaussians.feature_dim != method.feature_dim:
            gaussians.set("features", method.initial_features(len(gaussians)).to(gaussians.device))
        self.pool = PixelPool(
            views,
            self.cameras,
            gaussians,
            self.maps,
            self.draws,
            pixels=settings.lift_pixels,
            size=settings.lift_pool,
            min_samples=settings.lift_min_samples,
            min_weight=settings.lift_min_weight,
            budget_mb=settings.lift_cache_mb,
        )
        method.prepare(LiftData(gaussians.means.detach(), self.labelled_views))
        self.sample: Sample | None = None
        self.graph = GradientGraph(self._replayed, self._leaves)

    def train_step(self, step: int) -> dict[str, Tensor]:
        """Do 0-based `step` and return the unweighted, detached terms."""
        progress = self.progress(step)
        self.method.before_step(progress, self.labelled_pixels)
        self.mark("view")
        index, visit = self.order.next_index(), step // len(self.cameras)
        pooled = self.pool.of(index, visit)
        is_replayable = self._is_replayable(visit)
        key = self.method.graph_key(progress, self.settings.lift_pixels) if is_replayable else None
        if key is not None:
            self.mark("forward")
            lifting.draw(pooled.weights, pooled.slot, self.sample, stream=self.draws.number(step))
            self.mark("replay")
            terms = self.graph.run(key, progress)
        else:
            terms = self._computed(index, pooled, step, progress)
        self.mark("update")
        self.adam.step(self.gaussians.table, {"features": self.method.rates(progress)["features"]})
        self.update_method(self.method, progress)
        with torch.no_grad():
            self.method.after_step(self.gaussians.features)
        if step + 1 == self.num_steps:
            self.method.finish(self.labelled_pixels)
        return terms

    def labelled_views(self) -> Iterator[LabelledView]:
        """Walk over all labelled training views as the masks show them."""
        for name, camera, view in zip(self.names, self.cameras, self.views.all(), strict=True):
            segments = view.segments if view.valid is None else torch.where(view.valid, view.segments, -1)
            slots, ids = dense_slots(segments + 1, ignore_zero=True)  # raised by one: 0 = the lens saw nothing
            if self.method.ignore_zero and len(ids) and int(ids[0]) == 1:
                slots, ids = slots.sub(1).clamp(min=-1), ids[1:]
            yield LabelledView(name, camera, slots, ids - 1)

    @torch.no_grad()
    def labelled_pixels(self) -> Iterator[ViewPixels]:
        """Walk over all labelled training views: rendered features, slots and number of segments."""
        for index, view in enumerate(self.views.all()):
            slot, num_segments, rows = self.maps.of(index, view)
            features = render(self.gaussians, self.cameras[index]).features.flatten(0, 1)
            yield ViewPixels(features.index_select(0, rows), slot, num_segments)

    def _computed(self, index: int, pooled: Pooled, step: int, progress: float) -> dict[str, Tensor]:
        """Return the terms of a view of any size, with whatever weights there are, and leave the gradients."""
        self.mark("forward")
        chosen, slot = None, pooled.slot
        if len(slot) > self.settings.lift_pixels:
            generator = self.draws.at(step, slot.device)
            chosen = stratified(len(slot), self.settings.lift_pixels, generator=generator, device=slot.device)
            slot = slot.index_select(0, chosen)
        if pooled.weights is not None:
            features = blend(pooled.weights, self.gaussians.features, rows=chosen)
        else:
            rows = pooled.rows if chosen is None else pooled.rows.index_select(0, chosen)
            features = blend(self.pool.weights_at(index, rows), self.gaussians.features)
        self.gaussians.zero_grad()
        pixels = ViewPixels(features, slot, pooled.num_segments)
        return self._differentiated(pixels, progress, view=index, step=step)

    def _differentiated(self, pixels: ViewPixels, progress: float, *, view: int, step: int) -> dict[str, Tensor]:
        """Return the detached terms and leave the gradients of their weighted sum."""
        self.mark("losses")
        terms = self.method.losses(pixels, StepInfo(progress, step, view, self.gaussians.features))
        total = weighted_sum(terms, self.method.weights)
        self.mark("backward")
        total.backward()
        return {name: term.detach() for name, term in terms.items()}

    # ---- steps that a CUDA graph replays ----

    def _is_replayable(self, visit: int) -> bool:
        """Return whether all steps are alike: on a GPU, all weights at hand, enough pixels in every view."""
        if self.sample is None and self.gaussians.device.type == "cuda" and lifting.runs_on(self.gaussians.features):
            if self.pool.keeps_weights and self.pool.extremes(visit)[0] >= self.settings.lift_pixels:
                self.sample = Sample.empty(self.settings.lift_pixels, self.gaussians.device)
        return self.sample is not None

    def _replayed(self, progress: float) -> dict[str, Tensor]:
        features, (_, num_segments) = lifting.blend_sample(self.sample, self.gaussians.features), self.pool.extremes(0)
        return self._differentiated(ViewPixels(features, self.sample.slot, num_segments), progress, view=-1, step=-1)

    def _leaves(self) -> dict[str, Tensor]:
        return {"features": self.gaussians.features} | dict(self.method.named_parameters())
