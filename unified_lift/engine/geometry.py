"""Geometry stage: plain 3D-GS on colour. With a method it is the joint schedule: everything in one loop."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from unified_lift.density.default import DensityControl, DensitySettings
from unified_lift.engine.settings import GeometrySettings
from unified_lift.engine.stage import Stage
from unified_lift.engine.terms import require_finite, weighted_sum
from unified_lift.losses.photometric import photometric_loss
from unified_lift.methods.base import Method, Observation
from unified_lift.model.gaussians import Gaussians
from unified_lift.rendering import render
from unified_lift.types import Scene, View


class GeometryStage(Stage):
    """One view per step: photometric loss, density control, Adam; plus the method's losses if there is a method."""

    name = "geometry"

    def __init__(
        self,
        scene: Scene,
        gaussians: Gaussians,
        settings: GeometrySettings,
        density: DensitySettings,
        *,
        seed: int,
        method: Method | None = None,
    ) -> None:
        """Prepare the stage. `method` makes it the joint schedule of the paper and the released code."""
        super().__init__(num_steps=settings.iterations, num_views=len(scene.train), seed=seed)
        self.scene, self.gaussians, self.settings, self.method = scene, gaussians, settings, method
        self.radius = scene.radius
        self.density = DensityControl(density, radius=self.radius, count=len(gaussians), num_steps=settings.iterations)
        self.background = torch.ones(3, device=gaussians.device) if settings.white_background else None
        if method is not None and gaussians.feature_dim == 0:
            gaussians.set("features", method.initial_features(len(gaussians)).to(gaussians.device))

    def train_step(self, step: int) -> dict[str, Tensor]:
        """Do 0-based `step` and return the unweighted, detached terms."""
        view = self.scene.train[self.order.next_index()]
        watching = self.density.is_watching(step)
        means2d = torch.zeros_like(self.gaussians.means[:, :2], requires_grad=True) if watching else None
        if self.method is not None:
            self.method.before_step(self.progress(step), self.observe)
        out = render(
            self.gaussians,
            view.camera,
            sh_degree=step // self.settings.sh_interval,
            background=self.background,
            with_features=self.method is not None,
            means2d=means2d,
        )
        photometric = photometric_loss(
            out.image, target_image(view), lambda_dssim=self.settings.lambda_dssim, valid=view.valid
        )
        terms = {"photometric": photometric}
        if self.method is not None and view.segments is not None:
            terms |= self.method.losses(*seen_pixels(out.features, view), self.progress(step))
        total = weighted_sum(terms, self.method.weights if self.method else {})
        require_finite(total, terms, step)
        self.gaussians.zero_grad()
        total.backward()
        if means2d is not None:
            self.density.observe(means2d.grad, out.radii, width=view.camera.width, height=view.camera.height)
        self._update(step)
        self.density.act(self.gaussians, self.adam, step, self.generator)
        return {name: term.detach() for name, term in terms.items()}

    def rates(self, step: int) -> dict[str, float]:
        """Return the learning rate of each Gaussian parameter at a 0-based step."""
        s = self.settings
        rates = {
            "means": self.radius * log_linear(s.position_lr_init, s.position_lr_final, step / self._rate_steps()),
            "quats": s.rotation_lr,
            "log_scales": s.scaling_lr,
            "logit_opacities": s.opacity_lr,
            "sh0": s.sh_lr,
            "shN": s.sh_lr / 20,
        }
        if self.method is not None:
            rates["features"] = self.method.rates(self.progress(step))["features"]
        return rates

    @torch.no_grad()
    def observe(self) -> Iterator[Observation]:
        """Walk over all labelled training views: rendered features [P, D] and ids [P]."""
        for view in self.scene.train:
            if view.segments is not None:
                yield seen_pixels(render(self.gaussians, view.camera).features, view)

    def state_dict(self) -> dict:
        """Return everything but Gaussians and method."""
        return super().state_dict() | {"density": self.density.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` returned."""
        super().load_state_dict(state)
        self.density.load_state_dict(state["density"])

    def _update(self, step: int) -> None:
        self.adam.step(self.gaussians.table, self.rates(step))
        if self.method is not None:
            self.update_method(self.method, self.progress(step))

    def _rate_steps(self) -> int:
        return self.settings.position_lr_max_steps or self.settings.iterations


def seen_pixels(features: Tensor, view: View) -> Observation:
    """Return features [P, D] and ids [P] of the pixels of a labelled view that its lens saw, of features [H, W, D]."""
    if view.valid is None:
        return features.flatten(0, 1), view.segments.flatten()
    return features[view.valid], view.segments[view.valid]


def log_linear(first: float, last: float, progress: float) -> float:
    """Return the value `progress` of the way from `first` to `last` on a log scale, constant after the end [3DGS]."""
    t = min(max(progress, 0.0), 1.0)
    return math.exp(math.log(first) * (1 - t) + math.log(last) * t)


def target_image(view: View) -> Tensor:
    """Return the photo in [0, 1], float32 [H, W, 3]."""
    return view.image.float() / 255
