"""The default density strategy: clone, split, prune and opacity reset of 3D-GS."""

from dataclasses import dataclass
from typing import Annotated

import torch

from unified_lift.density import base
from unified_lift.density.base import DensityStep, RowOptimizer, State
from unified_lift.model.gaussians import Gaussians
from unified_lift.ops.quaternions import rotation_from_quaternion
from unified_lift.settings.limits import Range

_SPLIT_CHILDREN = 2
_SPLIT_SHRINK = 1.6  # scale of a child = parent / (0.8 * children) [3DGS]


@dataclass(frozen=True, kw_only=True)
class DefaultStrategySettings(base.StrategySettings):
    """When and where Gaussians are added and removed."""

    densify_from_iter: Annotated[int, Range(0)] = 500
    """First iteration, exclusive [3DGS]."""
    densify_until_iter: Annotated[int, Range(0)] = 0
    """Last iteration, exclusive; 0 = half of all, as 15,000 of 30,000 is [3DGS]; the released code stops at 10,000."""
    densification_interval: Annotated[int, Range(1)] = 100
    """Iterations between two rounds [3DGS]."""
    opacity_reset_interval: Annotated[int, Range(0)] = 3_000
    """Iterations between two opacity resets [3DGS]; 0 = never."""
    densify_grad_threshold: Annotated[float, Range(0)] = 2e-4
    """Mean norm of the screen-space gradient (NDC units) above which a Gaussian is too coarse [3DGS]."""
    absgrad: bool = False
    """Watch sums over pixels of absolute values instead, so that pixels which pull a Gaussian to opposite sides do not
    cancel: large Gaussians over fine texture are split [AbsGS]."""
    absgrad_threshold: Annotated[float, Range(0)] = 8e-4
    """With --absgrad, in place of densify_grad_threshold: these sums are longer [gsplat, AbsGS-0008]."""
    percent_dense: Annotated[float, Range(0)] = 0.01
    """Scale, as a share of the scene radius, that separates cloning from splitting [3DGS]."""
    min_opacity: Annotated[float, Range(0, 1)] = 0.005
    """Gaussians fainter than this are removed [3DGS]."""
    max_world_scale: Annotated[float, Range(0)] = 0.1
    """Gaussians larger than this share of the scene radius are removed after the first opacity reset [3DGS]."""
    max_gaussians: Annotated[int, Range(0)] = 0
    """Upper bound on N; 0 = none. [ours]"""
    grown_at: Annotated[float, Range(0, 1)] = 0.0
    """Share of the rounds after which the upper bound is reached, by so many of the coarsest Gaussians in each round,
    whatever the threshold; 0 = the threshold says [3DGS]."""


class DefaultStrategy(base.GradientStrategy):
    """Adaptive density control of 3D-GS. Its state: sums of the screen-space gradient, and of the views that count.

    Source: 3D-GS section 5.2 and its released code.
    Differs: no pruning by screen size, which is dead in that code (its radii are zeroed just before the test).
    """

    settings: DefaultStrategySettings

    def __init__(self, settings: DefaultStrategySettings) -> None:
        super().__init__(settings)
        self.absolute_gradients = settings.absgrad

    def last_change(self, num_steps: int) -> int:
        return self.settings.densify_until_iter or num_steps // 2

    def update(self, gaussians: Gaussians, optimizer: RowOptimizer, state: State, info: DensityStep) -> None:
        s, iteration = self.settings, info.step + 1
        if not self.statistics(state, info.step, info.num_steps):
            return
        if iteration > s.densify_from_iter and iteration % s.densification_interval == 0:
            self._densify(gaussians, optimizer, state, info)
            with torch.no_grad():
                keep = gaussians.opacities >= s.min_opacity
                if 0 < s.opacity_reset_interval < iteration:
                    keep &= gaussians.scales.max(dim=1).values <= s.max_world_scale * info.radius
            if not bool(keep.all()) and bool(keep.any()):
                base.keep_rows(gaussians, optimizer, state, keep)
        if s.opacity_reset_interval and iteration % s.opacity_reset_interval == 0:
            ceiling = float(torch.tensor(0.01).logit())  # the photos must argue for each Gaussian again [3DGS]
            gaussians.set("logit_opacities", gaussians.logit_opacities.detach().clamp(max=ceiling))
            optimizer.zero_moments("logit_opacities")

    def _densify(self, gaussians: Gaussians, optimizer: RowOptimizer, state: State, info: DensityStep) -> None:
        gradient, s = self.gradient(state), self.settings
        coarse = gradient >= (s.absgrad_threshold if s.absgrad else s.densify_grad_threshold)
        if s.max_gaussians:
            room = max(s.max_gaussians - len(gaussians), 0)
            if s.grown_at:
                last = s.densify_from_iter + s.grown_at * (self.last_change(info.num_steps) - s.densify_from_iter)
                count, every = len(gaussians), s.densification_interval
                room = base.budget(count, s.max_gaussians, step=info.step, last=last, interval=every) - count
                coarse = gradient > 0
            coarse &= torch.zeros_like(coarse).index_fill_(0, gradient.topk(min(room, len(gradient))).indices, True)
        large = gaussians.scales.detach().max(dim=1).values > self.settings.percent_dense * info.radius
        clones = {name: value.detach()[coarse & ~large] for name, value in gaussians}
        parents = {name: value.detach()[coarse & large] for name, value in gaussians}
        children = {name: value.repeat_interleave(_SPLIT_CHILDREN, dim=0) for name, value in parents.items()}
        scales, rotations = children["log_scales"].exp(), rotation_from_quaternion(children["quats"])
        offsets = torch.randn(scales.shape, generator=info.generator).to(scales.device) * scales  # [2n, 3], in own axes
        children["means"] = children["means"] + (rotations @ offsets[:, :, None])[:, :, 0]
        children["log_scales"] = (scales / _SPLIT_SHRINK).log()
        base.keep_rows(gaussians, optimizer, state, ~(coarse & large))
        base.append_rows(gaussians, optimizer, clones, children)
        state |= self.initial_state(len(gaussians), gaussians.device)


STRATEGY = base.StrategyEntry("default", DefaultStrategySettings, DefaultStrategy)
