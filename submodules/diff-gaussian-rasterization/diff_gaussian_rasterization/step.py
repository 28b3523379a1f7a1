"""A whole training step of 3D Gaussian Splatting: render a photo, compare, differentiate, take the Adam step.

What it computes is `rasterize`, `photometric_loss` and `fused_adam_steps` in a row. On a GPU it is done without
autograd, and the gradients of the Gaussians are never stored.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from . import _backend
from .api import rasterize
from .training import fused_adam_steps, photometric_loss
from .types import AdamState

PARAMETERS = ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN")


class TrainingStep:
    """One step after another on the same Gaussians; `forward`, then `update`. Keeps its working memory.

    Parameters are given as they are optimised: means [N, 3], quats [N, 4] of any length, log_scales [N, 3],
    logit_opacities [N], sh0 [N, 1, 3], shN [N, K - 1, 3]; all contiguous.
    """

    def __init__(self, *, implementation: str = "auto") -> None:
        """Take the implementation "auto", "reference", "cpu", "cuda" or "gsplat"; with the last, ours does the rest."""
        self.implementation = implementation
        self._steps: dict[torch.device, object] = {}
        self._current: object | None = None

    def forward(
        self,
        parameters: Mapping[str, Tensor],
        viewmat: Tensor,
        K: Tensor,
        target: Tensor,
        *,
        features: Tensor | None = None,
        sh_degree: int,
        background: Tensor | None = None,
        valid: Tensor | None = None,
        lambda_dssim: float = 0.2,
    ) -> tuple[Tensor, Tensor]:
        """Return the photometric loss of one photo, and the rendered features.

        Args:
            parameters: As above.
            viewmat: cam_from_world, [4, 4].
            K: Intrinsics in corner-origin pixels, [3, 3].
            target: Photo, uint8 [H, W, 3].
            features: Features to render beside the colour, [N, D]; they do not move the geometry.
            sh_degree: Active degree, at most what shN holds.
            background: Colour behind everything, [3]; None is black.
            valid: Pixels that count, bool [H, W]; None is all.
            lambda_dssim: Share of 1 - SSIM in the loss; the rest is L1.
        Returns:
            The loss, a scalar, and the feature map [H, W, D], both without history.
        Raises:
            ValueError: Shapes or dtypes do not fit.
        """
        _require(parameters, target, valid)
        means = parameters["means"]
        if means.device not in self._steps:
            module = _backend.select(self.implementation, means)
            own = getattr(module, "TrainingStep", None)
            self._steps[means.device] = _Composed(self.implementation) if own is None else own(means.device)
        self._current = self._steps[means.device]
        return self._current.forward(
            parameters, features, viewmat, K, target,
            sh_degree=sh_degree, background=background, valid=valid, lambda_dssim=lambda_dssim,
        )  # fmt: skip

    def update(
        self,
        adam: Mapping[str, AdamState],
        feature_gradient: Tensor | None = None,
        *,
        beta1: float,
        beta2: float,
        eps: float,
        grad_sum: Tensor | None = None,
        num_seen: Tensor | None = None,
    ) -> None:
        """Take the Adam step that the last `forward` asks for, in place. Nothing moves if the loss is not finite.

        Source: Kingma and Ba 2015, Algorithm 1.
        Args:
            adam: Moments, rate and step of each parameter, and of `features` if they have a gradient.
            feature_gradient: d (other losses) / d (feature map), [H, W, D]; it reaches the features only.
            beta1, beta2, eps: Of Adam.
            grad_sum: [N], to which the length of the derivative by the position on the screen, in units of half the
                screen, is added for every Gaussian that is seen: what density control watches. None = not wanted.
            num_seen: [N], to which 1 is added for every Gaussian that is seen; given together with grad_sum.
        """
        self._current.update(
            adam, feature_gradient, beta1=beta1, beta2=beta2, eps=eps, grad_sum=grad_sum, num_seen=num_seen
        )


def _require(parameters: Mapping[str, Tensor], target: Tensor, valid: Tensor | None) -> None:
    if target.dtype != torch.uint8 or target.ndim != 3 or target.shape[2] != 3:
        raise ValueError(f"target must be uint8 [H, W, 3], got {target.dtype} {list(target.shape)}")
    if valid is not None and (valid.dtype != torch.bool or valid.shape != target.shape[:2]):
        raise ValueError(f"valid must be bool {list(target.shape[:2])}, got {valid.dtype} {list(valid.shape)}")
    for name in PARAMETERS:
        if not parameters[name].is_contiguous():
            raise ValueError(f"{name} must be contiguous, because it is updated in place")


class _Composed:
    """The definition: the public pieces in a row, differentiated by autograd."""

    def __init__(self, implementation: str) -> None:
        self.implementation = implementation
        self.neighbours = "auto" if implementation == "gsplat" else implementation  # that one renders and nothing else

    def forward(
        self, parameters: Mapping[str, Tensor], features: Tensor | None, viewmat: Tensor, K: Tensor, target: Tensor,
        *, sh_degree: int, background: Tensor | None, valid: Tensor | None, lambda_dssim: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        self.leaves = leaves = {name: parameters[name].detach().requires_grad_() for name in PARAMETERS}
        if features is not None:
            leaves["features"] = features.detach().requires_grad_()
        self.means2d = torch.zeros_like(leaves["means"][None, :, :2]).requires_grad_()
        with torch.enable_grad():
            self.out = rasterize(
                leaves["means"], leaves["quats"], leaves["log_scales"].exp(), leaves["logit_opacities"].sigmoid(),
                torch.cat([leaves["sh0"], leaves["shN"]], dim=1), leaves.get("features"), viewmat[None], K[None],
                target.shape[1], target.shape[0], sh_degree=sh_degree,
                backgrounds=None if background is None else background[None], means2d=self.means2d,
                implementation=self.implementation,
            )  # fmt: skip
            self.loss = photometric_loss(
                self.out.image[0], target, lambda_dssim=lambda_dssim, valid=valid, implementation=self.neighbours
            )
        return self.loss.detach(), self.out.features[0].detach()

    def update(
        self, adam: Mapping[str, AdamState], feature_gradient: Tensor | None,
        *, beta1: float, beta2: float, eps: float, grad_sum: Tensor | None, num_seen: Tensor | None,
    ) -> None:  # fmt: skip
        if not bool(torch.isfinite(self.loss)):
            return
        ends, gradients = [self.loss], [None]
        if feature_gradient is not None:
            ends, gradients = [self.loss, self.out.features], [None, feature_gradient[None]]
        torch.autograd.backward(ends, gradients)
        if grad_sum is not None:
            height, width = self.out.alpha.shape[1:]
            seen = (self.out.meta.radii[0] > 0).to(grad_sum.dtype)
            half_size = self.means2d.new_tensor([width / 2, height / 2])
            grad_sum += (self.means2d.grad[0] * half_size).norm(dim=1) * seen
            num_seen += seen
        names = [name for name in adam if self.leaves[name].grad is not None and self.leaves[name].numel()]
        fused_adam_steps(
            [(self.leaves[n].detach(), self.leaves[n].grad, adam[n].exp_avg, adam[n].exp_avg_sq) for n in names],
            lrs=[adam[n].lr for n in names], beta1=beta1, beta2=beta2, eps=eps, steps=[adam[n].step for n in names],
            implementation=self.neighbours,
        )  # fmt: skip
        self.leaves, self.out, self.loss, self.means2d = {}, None, None, None
