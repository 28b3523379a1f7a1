"""The MCMC density strategy: noise explores, and faint Gaussians are moved to where others stand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from unified_lift.density import base
from unified_lift.density.base import DensityStep, RowOptimizer, State
from unified_lift.model.gaussians import Gaussians
from unified_lift.ops.quaternions import normalise, rotate
from unified_lift.settings.limits import Range

_MOST_COPIES = 51  # at one place in a round [3DGS-MCMC]
_STEEPNESS, _FAINT = 100.0, 0.005  # of the share of the noise that an opacity lets through [3DGS-MCMC]
_LARGEST_OPACITY = 1 - 2.0**-23


@dataclass(frozen=True, kw_only=True)
class MCMCStrategySettings(base.StrategySettings):
    """When and where Gaussians are added and moved, and how many there may be."""

    max_gaussians: Annotated[int, Range(0)] = 0
    """Upper bound on N, which is reached; 0 = a round adds as many as are coarser than `grad_threshold`. [ours]
    3DGS-MCMC: a number for each scene."""
    grown_at: Annotated[float, Range(0.01, 1)] = 0.5
    """Share of the rounds after which the upper bound is reached, by equal factors. [ours] 3DGS-MCMC: 5 % more in each
    round, which short runs end before the bound."""
    grad_threshold: Annotated[float, Range(0)] = 2e-4
    """Without an upper bound: mean norm of the screen-space gradient (NDC units) of a Gaussian that is too coarse, as
    for the default strategy [3DGS]."""
    relocate_from_iter: Annotated[int, Range(0)] = 500
    """First iteration, exclusive [3DGS-MCMC]."""
    relocate_until_iter: Annotated[int, Range(0)] = 0
    """Last iteration, exclusive; 0 = five sixths of all, as 25,000 of 30,000 is [3DGS-MCMC]."""
    relocation_interval: Annotated[int, Range(1)] = 100
    """Iterations between two rounds [3DGS-MCMC]."""
    min_opacity: Annotated[float, Range(0, 1)] = 0.005
    """Gaussians no more opaque than this are moved [3DGS-MCMC]."""
    gradient_power: Annotated[float, Range(0, 4)] = 1.0
    """Gaussians come to others drawn by opacity x mean screen-space gradient to this power: where photos ask for more.
    [ours] 3DGS-MCMC: 0, by opacity alone."""
    noise: Annotated[float, Range(0)] = 5e5
    """Noise of positions, times their rate and the covariance of the Gaussian, in units of the scene radius. [ours] so
    that a scene can have any unit; 3DGS-MCMC: in world units."""
    opacity_weight: Annotated[float, Range(0)] = 0.01
    """Weight of the loss `opacity`, which lets Gaussians fade that no photo asks for [3DGS-MCMC]."""
    scale_weight: Annotated[float, Range(0)] = 0.01
    """Weight of the loss `scale`, which keeps Gaussians small; over the scene radius [ours], as `noise`."""
    initial_opacity: Annotated[float, Range(0, 1)] = 0.5
    """Opacity of the first Gaussians [3DGS-MCMC]; the default strategy begins with 0.1."""
    initial_scale: Annotated[float, Range(above=0)] = 0.1
    """Factor of the first scales, the distance to the nearest points [3DGS-MCMC]."""


class MCMCStrategy(base.GradientStrategy):
    """3DGS as Markov Chain Monte Carlo: Langevin noise, relocation of dead Gaussians, growth to a cap.

    Source: Kheradmand et al. 2024, sections 4.2 to 4.4, with the settings of its code.
    Its state: sums of the screen-space gradient, and of the views that count.
    """

    settings: MCMCStrategySettings

    def loss_weights(self, radius: float) -> Mapping[str, float]:
        return {"opacity": self.settings.opacity_weight, "scale": self.settings.scale_weight / radius}

    def last_change(self, num_steps: int) -> int:
        return self.settings.relocate_until_iter or num_steps * 5 // 6

    @torch.no_grad()
    def begin(self, gaussians: Gaussians) -> None:
        opacity = torch.full_like(gaussians.logit_opacities, self.settings.initial_opacity)
        gaussians.set("logit_opacities", opacity.clamp(max=_LARGEST_OPACITY).logit())
        gaussians.set("log_scales", (gaussians.scales.detach() * self.settings.initial_scale).log())

    @torch.no_grad()
    def update(self, gaussians: Gaussians, optimizer: RowOptimizer, state: State, info: DensityStep) -> None:
        s, iteration, until = self.settings, info.step + 1, self.last_change(info.num_steps)
        if s.relocate_from_iter < iteration < until and iteration % s.relocation_interval == 0:
            gradient = self.gradient(state)
            asked = (gradient / gradient.mean().clamp(min=1e-20)) ** s.gradient_power
            self._relocate(gaussians, optimizer, asked, info)
            self._grow(gaussians, optimizer, asked, self._room(gradient, info), info)
            state |= self.initial_state(len(gaussians), gaussians.device)
        if s.noise:
            self._explore(gaussians, info)

    def _room(self, gradient: Tensor, info: DensityStep) -> int:
        """Return how many Gaussians a round adds."""
        s = self.settings
        if not s.max_gaussians:
            return int((gradient >= s.grad_threshold).sum())
        last = s.relocate_from_iter + s.grown_at * (self.last_change(info.num_steps) - s.relocate_from_iter)
        count, every = len(gradient), s.relocation_interval
        return base.budget(count, s.max_gaussians, step=info.step, last=last, interval=every) - count

    def _explore(self, gaussians: Gaussians, info: DensityStep) -> None:
        """Move the positions by noise of the shape of each Gaussian, the less the more opaque it is (Eq. 9)."""
        means, scales = gaussians.means, gaussians.scales
        drawn = torch.randn(means.shape, generator=info.noise, device=means.device)
        # covariance x noise = R S S^T R^T noise, and R^T noise is again such noise
        moved = rotate(normalise(gaussians.quats), scales.square() * drawn)
        share = torch.sigmoid(_STEEPNESS * (_FAINT - gaussians.opacities))
        share *= self.settings.noise * info.rate / info.radius**2
        means.addcmul_(moved, share[:, None])

    def _relocate(self, gaussians: Gaussians, optimizer: RowOptimizer, asked: Tensor, info: DensityStep) -> None:
        """Move dead Gaussians to living ones, so that the picture changes little."""
        opacities = gaussians.opacities.detach()
        alive = opacities > self.settings.min_opacity
        dead = (~alive).nonzero()[:, 0]
        chosen = self._share(gaussians, optimizer, torch.where(alive, opacities * asked, 0), len(dead), info)
        if len(chosen):
            for name, value in list(gaussians):
                gaussians.set(name, value.detach().index_copy(0, dead, value.detach()[chosen]))

    def _grow(
        self, gaussians: Gaussians, optimizer: RowOptimizer, asked: Tensor, count: int, info: DensityStep
    ) -> None:
        """Add so many Gaussians, each in the place of another one."""
        chosen = self._share(gaussians, optimizer, gaussians.opacities.detach() * asked, count, info)
        base.append_rows(gaussians, optimizer, {name: value.detach()[chosen] for name, value in gaussians})

    def _share(
        self, gaussians: Gaussians, optimizer: RowOptimizer, weights: Tensor, count: int, info: DensityStep
    ) -> Tensor:
        """Return `count` rows drawn by weight [N], int64, or none; each has been given the share of one of its copies.

        Samples are drawn by the sum of the weights up to each row, which has no bound on N.
        """
        sums = weights.double().cumsum(0)
        if count < 1 or not len(sums) or not float(sums[-1]) > 0:
            return torch.zeros(0, dtype=torch.int64, device=weights.device)
        drawn = torch.rand(count, generator=info.generator, dtype=torch.float64).to(sums.device) * sums[-1]
        chosen = torch.searchsorted(sums, drawn, right=True).clamp(max=len(weights) - 1)
        copies = torch.bincount(chosen, minlength=len(weights))[chosen] + 1
        opacities, scales = relocation(gaussians.opacities.detach()[chosen], gaussians.scales.detach()[chosen], copies)
        opacities = opacities.clamp(self.settings.min_opacity, _LARGEST_OPACITY)
        for name, rows in (("logit_opacities", opacities.logit()), ("log_scales", scales.log())):
            gaussians.set(name, getattr(gaussians, name).detach().index_copy(0, chosen, rows))
        optimizer.zero_rows(chosen)
        return chosen


def relocation(opacities: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return opacity [N] and scales [N, 3] of each of `copies` Gaussians that together look as one did.

    Source: Kheradmand et al. 2024, Eq. 8: o' = 1 - (1 - o)^(1/n), and
    s' = s o / sum_(i=1..n) sum_(k=0..i-1) C(i-1, k) (-1)^k o'^(k+1) / sqrt(k+1), whose inner sum over i is C(n, k+1).
    Args:
        opacities, scales: Of the one, [N] and [N, 3].
        copies: n, int64 [N], at least 1; more than 51 count as 51.
    """
    n = copies.clamp(max=_MOST_COPIES).double()[:, None]
    old = opacities.double()[:, None]
    new = -torch.expm1(torch.log1p(-old) / n)
    j = torch.arange(1, _MOST_COPIES + 1, dtype=torch.float64, device=old.device)
    binomials = torch.lgamma(n + 1) - torch.lgamma(j + 1) - torch.lgamma((n - j).clamp(min=0) + 1)
    terms = torch.where(j <= n, (binomials + j * new.log()).exp() / j.sqrt(), 0)
    signs = 1 - 2 * ((j - 1) % 2)
    factor = old[:, 0] / (terms * signs).sum(dim=1)
    return new[:, 0].to(opacities), (factor[:, None] * scales.double()).to(scales)


STRATEGY = base.StrategyEntry("mcmc", MCMCStrategySettings, MCMCStrategy)
