"""Geometry stage: plain 3D-GS on colour. With a method it is the joint schedule: everything in one loop."""

import math
import weakref
from collections.abc import Mapping, Sequence

import torch
from diff_gaussian_rasterization import RasterOutput, TrainingStep, adam_steps
from torch import Tensor

from unified_lift.density.base import DensityStep, Strategy, contributions, keep_rows
from unified_lift.kernels.photometric import backward, photometric_loss
from unified_lift.methods.base import Method, StepInfo
from unified_lift.model.gaussians import Gaussians
from unified_lift.modelfolder.settings import GeometrySettings
from unified_lift.ops.rng import StepRng
from unified_lift.train.exposure import NO_EXPOSURE, Exposures, exposure_kind
from unified_lift.train.gradients import GradientSums
from unified_lift.train.losses import chosen_losses
from unified_lift.train.stage import Stage, weighted_sum
from unified_lift.train.views import SegmentMaps
from unified_lift.types import Scene, View


class GeometryStage(Stage):
    """One view per step: photometric loss, density control, Adam; plus the method's losses if there is a method."""

    name = "geometry"

    def __init__(
        self,
        scene: Scene,
        gaussians: Gaussians,
        settings: GeometrySettings,
        strategy: Strategy,
        *,
        seed: int,
        method: Method | None = None,
    ) -> None:
        """Prepare the stage. `method` makes it the joint schedule of the paper and the released code."""
        fields = ["image", "valid"] if method is None else ["image", "segments", "valid"]
        self.losses = chosen_losses(settings.loss_weights, strategy.loss_weights(scene.radius))
        fields += ["alpha"] if settings.random_background or settings.exposure != NO_EXPOSURE else []
        fields += ["points"] if any(loss.needs_points for loss in self.losses) else []
        super().__init__(scene, scene.train, gaussians, method, fields=fields, num_steps=settings.iterations, seed=seed)
        self.settings, self.radius = settings, scene.radius
        self.num_transparent = sum(view.has_alpha for view in scene.train)
        self.num_points = [0 if view.points is None else len(view.points) for view in scene.train]
        if method is not None:
            self.maps = SegmentMaps(ignore_zero=method.ignore_zero, keep=scene.kept_on == gaussians.device.type)
        self.weights = dict(self.weights) | {loss.name: weight for loss, weight in self.losses.items()}
        kind = exposure_kind(settings.exposure)
        self.exposures = None if kind is None else Exposures(kind, scene.train, settings, gaussians.device)
        self.weights |= {"exposure": settings.weight_exposure}
        self.strategy, self.density = strategy, strategy.initial_state(len(gaussians), gaussians.device)
        self.background = torch.ones(3, device=gaussians.device) if settings.white_background else None  # else black
        self.labelled = [view.has_mask for view in scene.train]
        self.rng, self.noise, self.sums = StepRng(seed), StepRng(-1 - seed), GradientSums()
        implementation = "auto" if settings.rasterizer == "ours" else settings.rasterizer
        self.renderer = TrainingStep(implementation=implementation, absolute_gradients=strategy.absolute_gradients)

    @property
    def unsettled_steps(self) -> int:
        """Return after how many steps rates are at their last and the number of Gaussians stays."""
        bound = self.settings.settled_after * len(self.cameras)
        return min(bound, self.num_steps) if bound else self.num_steps

    @property
    def choices(self) -> list[str]:
        """Return a line for each thing beyond the plain recipe that was chosen."""
        lines = [] if self.exposures is None else [str(self.exposures)]
        if self.settings.random_background:
            lines.append(f"random background: {self.num_transparent} of {len(self.cameras)} photos are transparent")
        if self.gaussians.antialiased:
            lines.append("anti-aliasing: opacities are compensated for the low-pass")
        if self.strategy.absolute_gradients:
            lines.append("density: absolute gradients")
        if self.unsettled_steps < self.num_steps:
            lines.append(f"settled after {self.unsettled_steps} of {self.num_steps} iterations: then rates stay low")
        if asking := [loss.name for loss in self.losses if loss.needs_points]:
            shown = f"{sum(self.num_points)} sparse points in {sum(map(bool, self.num_points))} views"
            lines.append(f"loss {', '.join(asking)}: {shown}")
        return lines

    def step(self, step: int) -> dict[str, Tensor]:
        self.on_phase("view")
        indices = self.next_indices()
        if self.method is not None:
            self.before_step(self.method, step)
        rates = self.rates(step)
        watched = self.strategy.statistics(self.density, step, self.unsettled_steps)
        if self.ranks.batch == 1:
            terms, total, out = self.seen(indices[0], self.view_of(indices, 0), step)
            radii = out.meta.radii
            self.on_phase("update")
            if out.features.grad is None:
                rates.pop("features", None)
            states = self.adam.states(self.gaussians.table, rates)
            self.renderer.update(states, loss=total, **self.adam.constants, **watched)
            if self.exposures is not None:
                self.exposures.step(indices[0], self.progress(step))
        else:
            terms, radii = self.seen_together(indices, step, rates, watched)
        if self.settings.max_scale:
            with torch.no_grad():
                self.gaussians.log_scales.clamp_(max=math.log(self.settings.max_scale) + math.log(self.radius))
        if self.method is not None:
            self.update_method(self.method, self.progress(step))
        self.on_phase("density")
        for iteration in range(step, min(step + self.ranks.batch, self.num_steps)):
            self.control_density(iteration, radii, rates["means"])
        return {name: term.detach() for name, term in terms.items()}

    def seen(
        self, index: int, view: View, step: int, table: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], Tensor, RasterOutput]:
        """Render view `index` and differentiate its losses; return their terms, their weighted sum and the maps.

        `table`: the parameters that it may show, if not all.
        """
        self.on_phase("forward")
        background = self.background_at(step)
        viewmat, intrinsics = view.camera.tensors(self.gaussians.device)
        out = self.renderer.forward(
            self.gaussians.table if table is None else table,
            *(viewmat, intrinsics, view.camera.width, view.camera.height),
            features=None if self.method is None else self.gaussians.features,
            sh_degree=min(step // self.settings.sh_interval, self.gaussians.sh_degree),
            background=background,
            antialiased=self.gaussians.antialiased,
        )
        self.on_phase("losses")
        share = self.settings.lambda_dssim
        image = out.image if self.exposures is None else self.exposures.apply(index, out.image, view.alpha)
        target = over(background, view, self.background) if self.settings.random_background else view.image
        terms = {"photometric": photometric_loss(image, target, lambda_dssim=share, valid=view.valid)}
        terms |= {} if self.exposures is None else self.exposures.penalties(index)
        asked = [loss for loss in self.losses if loss.gradient is None]
        terms |= {loss.name: loss.function(out, self.gaussians, view) for loss in asked}
        if self.method is not None and view.has_mask:
            seen = self.maps.of(index, view).seen(out)  # the gradient stops at the features [released]
            terms |= self.method.losses(seen, StepInfo(self.progress(step), step, index, self.gaussians.features))
        total = weighted_sum(terms, self.weights)
        self.on_phase("backward")
        backward(total)
        return terms | self.of_parameters(out, view), total, out

    def seen_together(
        self, indices: Sequence[int], step: int, rates: dict[str, float], watched: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Take one step for several views, which processes share out.

        Return the terms of the last one of this process, and the largest radius of each Gaussian in any.
        """
        if not any(self.labelled[index] for index in indices):
            rates.pop("features", None)
        table, exposures, terms = self.gaussians.table, self.exposures, dict[str, Tensor]()
        like = {name: table[name] for name in rates} | dict(watched)
        parts = self.sums.begin({name: value.shape for name, value in like.items()}, self.gaussians.device)
        own = {name: parts[name] for name in rates}
        largest = torch.zeros(len(self.gaussians), dtype=torch.int32, device=self.gaussians.device)
        photos = [] if exposures is None else [torch.zeros_like(exposures.tables[index]) for index in indices]
        for place in self.ranks.mine:
            self.begin_draws(step + place)
            terms, total, out = self.seen(indices[place], self.view_of(indices, place), step + place)
            self.renderer.gradients(own, loss=total, **{name: parts[name] for name in watched})
            torch.maximum(largest, out.meta.radii, out=largest)
            if exposures is not None:
                photos[place] += exposures.gradient(indices[place])
        self.on_phase("exchange")
        self.ranks.add(self.sums.flat)
        self.ranks.add(largest, largest=True)
        self.on_phase("update")
        with torch.no_grad():
            for name, value in watched.items():
                value.add_(parts[name])
            for gradient in own.values():
                gradient.div_(self.ranks.batch)
        states = self.adam.states(table, rates)
        updates = [(table[name].detach(), own[name], state) for name, state in states.items() if own[name].numel()]
        adam_steps(updates, **self.adam.constants)
        self._step_photos(indices, photos, step)
        return terms, largest

    def _step_photos(self, indices: Sequence[int], gradients: Sequence[Tensor], step: int) -> None:
        """Move the photos of a step by their gradients, zeros of those that other processes have seen."""
        self.ranks.add(*gradients)
        for index, gradient in zip(indices, gradients, strict=False):
            assert self.exposures is not None
            self.exposures.step(index, self.progress(step), gradient)

    def control_density(self, iteration: int, radii: Tensor, rate: float) -> None:
        """Let the strategy act after a 0-based iteration; what it does is the same in all processes."""
        before = {name: weakref.ref(value) for name, value in self.gaussians}
        noise = self.noise.at(iteration, self.gaussians.device)
        if len(radii) != len(self.gaussians):  # an earlier iteration of the step has changed them
            radii = radii.new_zeros(len(self.gaussians))
        info = DensityStep(iteration, self.unsettled_steps, self.radius, radii, self.generator, noise, rate)
        self.strategy.update(self.gaussians, self.adam, self.density, info)
        last = iteration + 1 == self.strategy.last_change(self.unsettled_steps)
        if last and self.strategy.settings.min_contribution:
            keep = self.contributions() > self.strategy.settings.min_contribution
            if bool(keep.any()):
                keep_rows(self.gaussians, self.adam, self.density, keep)
        if self.ranks.count > 1 and any(before[name]() is not value for name, value in self.gaussians):
            self.share_rows()

    def contributions(self) -> Tensor:
        """Return the largest blending weight of each Gaussian in any view, [N]."""
        most = contributions(self.gaussians, self.cameras[self.ranks.index :: self.ranks.count])
        self.ranks.add(most, largest=True)
        return most

    def whole(self) -> Gaussians:
        for _, value in self.gaussians:  # as replicated ones are; if ever a GPU added up otherwise, not any more
            self.ranks.same(value)
        return self.gaussians

    def share_rows(self) -> None:
        """Take the rows of the first process: some sums of a GPU, by which they are drawn, depend on thread order."""
        table, self.adam.moments, self.density = self.ranks.of_first(
            lambda: (self.gaussians.state_dict(), self.adam.moments, self.density)
        )
        for name, value in table.items():
            self.gaussians.set(name, value)

    @torch.no_grad()
    def of_parameters(self, out: RasterOutput, view: View) -> dict[str, Tensor]:
        """Return the losses that say their derivatives themselves, and add these to the gradients of the parameters."""
        terms = {}
        for loss, weight in self.losses.items():
            if loss.gradient is not None:
                terms[loss.name] = loss.function(out, self.gaussians, view)
                for name, gradient in loss.gradient(self.gaussians).items():
                    parameter, own = self.gaussians.table[name], weight * gradient
                    parameter.grad = own if parameter.grad is None else parameter.grad + own
        return terms

    def background_at(self, step: int) -> Tensor | None:
        """Return the colour behind everything in a 0-based step, [3], None = black."""
        if not self.settings.random_background:
            return self.background
        device = self.gaussians.device
        return torch.rand(3, generator=self.rng.at(step, device), device=device)

    def rates(self, step: int) -> dict[str, float]:
        """Return the learning rate of each Gaussian parameter at a 0-based step."""
        s = self.settings
        share = min(1.0, step / self.unsettled_steps)
        done = step / (s.position_lr_max_steps or self.unsettled_steps)
        fall = log_linear(1.0, s.final_rates, 1 - (1 - share) / s.cooldown) if s.cooldown else 1.0
        features = {} if self.method is None else {"features": self.method.rates(self.progress(step))["features"]}
        return features | rates_of(s, self.radius, done=done, fall=fall)

    def state_dict(self) -> dict:
        own = {} if self.exposures is None else {"exposures": self.exposures.state_dict()}
        return super().state_dict() | {"density": dict(self.density)} | own

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if any(len(state["density"][name]) != len(value) for name, value in self.density.items()):
            raise ValueError(f"density is not that of {len(self.gaussians)} Gaussians")
        self.density = {name: value.to(self.gaussians.device, copy=True) for name, value in state["density"].items()}
        if self.exposures is not None:
            self.exposures.load_state_dict(state["exposures"])


def over(background: Tensor | None, view: View, loaded: Tensor | None) -> Tensor:
    """Return a photo over another background than that, `loaded`, over which it was; [3] each, None = black.

    Source: c + (1 - a) (background - loaded) of its colours c and alpha a, in [0, 1]; uint8 as it is if opaque.
    """
    if view.alpha is None or background is None:
        return view.image
    through = 1 - view.alpha[..., None] / 255
    return view.image / 255 + through * (background if loaded is None else background - loaded)


def rates_of(settings: GeometrySettings, radius: float, *, done: float = 0.0, fall: float = 1.0) -> dict[str, float]:
    """Return the rates of 3DGS by name of the parameter, where a share `done` of the way of the positions' is done.

    `radius` is the scene extent, world units; `fall` a factor of all but the positions'.
    """
    s = settings
    return {
        "means": radius * log_linear(s.position_lr_init, s.position_lr_final, done),
        "quats": fall * s.rotation_lr,
        "log_scales": fall * s.scaling_lr,
        "logit_opacities": fall * s.opacity_lr,
        "sh0": fall * s.sh_lr,
        "shN": fall * s.sh_lr / 20,
    }


def log_linear(first: float, last: float, progress: float) -> float:
    """Return the value `progress` of the way from `first` to `last` on a log scale, constant after the end [3DGS]."""
    t = min(max(progress, 0.0), 1.0)
    return math.exp(math.log(first) * (1 - t) + math.log(last) * t)
