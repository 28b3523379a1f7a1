"""Lift stage: features and codebook on frozen geometry.

With geometry frozen a rendered feature is a fixed linear map of the Gaussian features. So a step needs no colour, no
SSIM, and only the sampled pixels; the map (the blending weights) is computed once per view if it fits in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diff_gaussian_rasterization import PixelWeights, blend
from torch import Tensor

from unified_lift.engine.settings import LiftSettings
from unified_lift.engine.stage import Stage
from unified_lift.engine.terms import weighted_sum
from unified_lift.engine.views import ViewSource
from unified_lift.methods.base import Method, Observation
from unified_lift.model.gaussians import Gaussians
from unified_lift.rendering import blending_weights
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

    def features(self, index: int, rows: Tensor | None = None) -> Tensor:
        """Return the rendered features of view `index` at the pixels `rows` (y * width + x, int64 [P]), or all, [P, D].

        Gradient: to the features of the Gaussians.
        """
        if rows is None or self.keeps_all:
            return blend(self._all_pixels(index), self.gaussians.features, rows=rows)
        width = self.cameras[index].width
        pixels = torch.stack([rows % width, rows // width], dim=1)
        return blend(self._compute(index, pixels), self.gaussians.features)

    def _all_pixels(self, index: int) -> PixelWeights:
        if index in self.kept:
            return self.kept[index]
        weights = self._compute(index, None)
        if self.keeps_all:
            self.kept[index] = weights
        return weights

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
        # Pixels the lens saw, as rows y * width + x; None = all.
        self.seen = [None if v.valid is None else v.valid.flatten().nonzero()[:, 0] for v in labelled]
        self.seen = [None if rows is None else rows.to(gaussians.device) for rows in self.seen]
        self.cameras = [view.camera for view in labelled]
        self.gaussians, self.method, self.settings = gaussians, method, settings
        views = ViewSource(labelled, kept_on=scene.kept_on, device=gaussians.device, fields=("segments",))
        super().__init__(num_steps=settings.lift_iterations, views=views, seed=seed)
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
        segments, seen = view.segments.flatten(), self.seen[index]
        count = len(segments) if seen is None else len(seen)
        self.mark("forward")
        if count > self.settings.lift_pixels:
            rows = torch.randint(count, (self.settings.lift_pixels,), generator=self.generator).to(segments.device)
            rows = rows if seen is None else seen[rows]
            features, segments = self.cache.features(index, rows), segments[rows]  # [P, D]
        else:
            features, segments = self._all_seen(index, view)
        self.mark("losses")
        terms = self.method.losses(features, segments, progress)
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
        """Walk over all labelled training views: rendered features [P, D] and ids [P]."""
        for index, view in enumerate(self.views.all()):
            yield self._all_seen(index, view)

    def _all_seen(self, index: int, view: View) -> Observation:
        """Return features and ids of every pixel of a view that its lens saw."""
        segments, seen = view.segments.flatten(), self.seen[index]
        return self.cache.features(index, seen), segments if seen is None else segments[seen]
