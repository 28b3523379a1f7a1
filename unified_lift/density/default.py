"""Adaptive density control of 3D-GS: clone, split, prune, opacity reset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor

from unified_lift.model.gaussians import Gaussians
from unified_lift.ops.quaternions import rotation_from_quaternion
from unified_lift.settings.limits import Range

_SPLIT_CHILDREN = 2
_SPLIT_SHRINK = 1.6  # scale of a child = parent / (0.8 * children) [3DGS]
_RESET_OPACITY = 0.01  # [3DGS]


@dataclass(frozen=True, kw_only=True)
class DensitySettings:
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
    percent_dense: Annotated[float, Range(0)] = 0.01
    """Scale, as a share of the scene radius, that separates cloning from splitting [3DGS]."""
    min_opacity: Annotated[float, Range(0, 1)] = 0.005
    """Gaussians fainter than this are removed [3DGS]."""
    max_world_scale: Annotated[float, Range(0)] = 0.1
    """Gaussians larger than this share of the scene radius are removed after the first opacity reset [3DGS]."""
    max_gaussians: Annotated[int, Range(0)] = 0
    """Upper bound on N; 0 = none. [ours]"""


class RowOptimizer(Protocol):
    """What density control asks of an optimiser."""

    def keep_rows(self, keep: Tensor) -> None: ...  # noqa: D102
    def append_rows(self, count: int) -> None: ...  # noqa: D102
    def zero_moments(self, name: str) -> None: ...  # noqa: D102


class DensityControl:
    """Statistics of the screen-space gradient and the rounds that act on them.

    Source: 3D-GS section 5.2 and its released code.
    Differs: the code's pruning by screen size is dead there (its radii are zeroed just before the test), so it is
        absent here.
    """

    def __init__(self, settings: DensitySettings, *, radius: float, count: int, num_steps: int) -> None:
        """Start with empty statistics for `count` Gaussians in a scene of extent `radius` (world units)."""
        self.settings, self.radius = settings, radius
        self.until = settings.densify_until_iter or num_steps // 2
        self._forget(count, torch.device("cpu"))

    def is_watching(self, step: int) -> bool:
        """Return whether statistics are gathered at this 0-based step."""
        return step + 1 < self.until

    def statistics(self, device: torch.device) -> dict[str, Tensor]:
        """Return the sums a training step adds to: `grad_sum` and `num_seen`, [N] each, on `device`.

        grad_sum: length of d loss / d position on the screen, in units of half its size (NDC), over the views that see
        the Gaussian; num_seen: their number.
        """
        if self.grad_sum.device != device:
            self.grad_sum, self.num_seen = self.grad_sum.to(device), self.num_seen.to(device)
        return {"grad_sum": self.grad_sum, "num_seen": self.num_seen}

    def act(self, gaussians: Gaussians, optimizer: RowOptimizer, step: int, generator: torch.Generator) -> None:
        """Densify, prune or reset opacities if this 0-based step is one of those that do."""
        s, iteration = self.settings, step + 1
        if iteration >= self.until:
            return
        if iteration > s.densify_from_iter and iteration % s.densification_interval == 0:
            self._densify(gaussians, optimizer, generator)
            self._prune(gaussians, optimizer, large=0 < s.opacity_reset_interval < iteration)
        if s.opacity_reset_interval and iteration % s.opacity_reset_interval == 0:
            reset_opacities(gaussians, optimizer)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the statistics."""
        return {"grad_sum": self.grad_sum.clone(), "num_seen": self.num_seen.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what `state_dict` returned."""
        self.grad_sum, self.num_seen = state["grad_sum"].clone(), state["num_seen"].clone()

    def _densify(self, gaussians: Gaussians, optimizer: RowOptimizer, generator: torch.Generator) -> None:
        gradient = self.grad_sum / self.num_seen.clamp(min=1)
        coarse = gradient >= self.settings.densify_grad_threshold
        if self.settings.max_gaussians:
            room = max(self.settings.max_gaussians - len(gaussians), 0)
            coarse &= torch.zeros_like(coarse).index_fill_(0, gradient.topk(min(room, len(gradient))).indices, True)
        large = gaussians.scales.detach().max(dim=1).values > self.settings.percent_dense * self.radius
        children = [_clones(gaussians, coarse & ~large), _split(gaussians, coarse & large, generator)]
        survivors = ~(coarse & large)
        optimizer.keep_rows(survivors)
        optimizer.append_rows(sum(len(child["means"]) for child in children))
        for name, value in list(gaussians):
            gaussians.set(name, torch.cat([value.detach()[survivors], *(child[name] for child in children)]))
        self._forget(len(gaussians), gaussians.device)

    def _forget(self, count: int, device: torch.device) -> None:
        self.grad_sum, self.num_seen = torch.zeros(count, device=device), torch.zeros(count, device=device)

    def _prune(self, gaussians: Gaussians, optimizer: RowOptimizer, *, large: bool) -> None:
        with torch.no_grad():
            keep = gaussians.opacities >= self.settings.min_opacity
            if large:
                keep &= gaussians.scales.max(dim=1).values <= self.settings.max_world_scale * self.radius
        if bool(keep.all()) or not bool(keep.any()):
            return
        optimizer.keep_rows(keep)
        for name, value in list(gaussians):
            gaussians.set(name, value.detach()[keep])
        self.grad_sum, self.num_seen = self.grad_sum[keep], self.num_seen[keep]


def reset_opacities(gaussians: Gaussians, optimizer: RowOptimizer) -> None:
    """Lower every opacity to at most 0.01 and forget its moments; the photos must argue for each Gaussian again."""
    with torch.no_grad():
        ceiling = torch.tensor(_RESET_OPACITY).logit()
        gaussians.set("logit_opacities", gaussians.logit_opacities.clamp(max=float(ceiling)))
    optimizer.zero_moments("logit_opacities")


def _clones(gaussians: Gaussians, chosen: Tensor) -> dict[str, Tensor]:
    return {name: value.detach()[chosen] for name, value in gaussians}


def _split(gaussians: Gaussians, chosen: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    parents = {name: value.detach()[chosen].repeat_interleave(_SPLIT_CHILDREN, dim=0) for name, value in gaussians}
    scales = parents["log_scales"].exp()
    offsets = (
        torch.randn(scales.shape, generator=generator).to(scales.device) * scales
    )  # [2n, 3], in the Gaussian's own axes
    rotations = rotation_from_quaternion(parents["quats"])
    parents["means"] = parents["means"] + (rotations @ offsets[:, :, None])[:, :, 0]
    parents["log_scales"] = (scales / _SPLIT_SHRINK).log()
    return parents
