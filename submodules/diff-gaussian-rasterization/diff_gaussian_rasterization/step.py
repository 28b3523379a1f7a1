"""A training step of 3D Gaussian Splatting around the caller's losses: render a view, then differentiate and take Adam.

What it computes is `rasterize` and `adam_steps`, with any loss in torch between them. On a GPU the gradients of
the Gaussians are never stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from . import native
from .adam import AdamState, adam_steps
from .api import rasterize
from .types import RasterMeta, RasterOutput

PARAMETERS = ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN")


class TrainingStep:
    """One step after another on the same Gaussians: `forward`, any loss and its `backward()`, `update`.

    Parameters are given as they are optimised: means [N, 3], quats [N, 4] of any length, log_scales [N, 3],
    logit_opacities [N], sh0 [N, 1, 3], shN [N, K - 1, 3]; all contiguous. Working memory is kept between steps.
    """

    def __init__(self, *, implementation: str = "auto", absolute_gradients: bool = False) -> None:
        """Take the implementation "auto", "reference", "cpu", "cuda" or "gsplat"; with the last, ours does the rest.

        With `absolute_gradients`, which "gsplat" lacks, `grad_sum` of `update` collects sums of absolute values.
        """
        self.implementation, self.absolute_gradients = implementation, absolute_gradients
        self._steps: dict[torch.device, object] = {}
        self._current: object | None = None

    def forward(
        self,
        parameters: Mapping[str, Tensor],
        viewmat: Tensor,
        K: Tensor,
        width: int,
        height: int,
        *,
        features: Tensor | None = None,
        sh_degree: int,
        background: Tensor | None = None,
        antialiased: bool = False,
    ) -> RasterOutput:
        """Return one rendered view, whose maps are leaves that collect the gradients of any loss on them.

        Args:
            parameters: As above.
            viewmat: cam_from_world, [4, 4].
            K: Intrinsics in corner-origin pixels, [3, 3].
            width, height: Image size in pixels.
            features: Features to render beside the colour, [N, D].
            sh_degree: Active degree, at most what shN holds.
            background: Colour behind everything, [3]; None is black.
            antialiased: As in `rasterize`.
        Returns:
            image [H, W, 3], features [H, W, D], alpha [H, W], depth [H, W] and meta with radii [N].
        Raises:
            ValueError: A parameter is not contiguous, or shapes do not fit.
        """
        for name in PARAMETERS:
            if not parameters[name].is_contiguous():
                raise ValueError(f"{name} must be contiguous, because it is updated in place")
        device = parameters["means"].device
        if device not in self._steps:
            own = getattr(native.select(self.implementation, parameters["means"]), "TrainingStep", None)
            absolute = self.absolute_gradients
            self._steps[device] = _Composed(self.implementation, absolute) if own is None else own(device, absolute)
        self._current = self._steps[device]
        return self._current.forward(
            parameters, features, viewmat, K, width, height,
            sh_degree=sh_degree, background=background, antialiased=antialiased,
        )  # fmt: skip

    def update(
        self,
        adam: Mapping[str, AdamState],
        *,
        loss: Tensor,
        beta1: float,
        beta2: float,
        eps: float,
        grad_sum: Tensor | None = None,
        num_seen: Tensor | None = None,
    ) -> None:
        """Take the Adam step, in place, for the gradients that the maps of the last `forward` and the parameters hold.

        Gradients of the parameters themselves (`.grad`, of regularisers) are added to what the maps ask for, and are
        None afterwards.

        Source: Kingma and Ba 2015, Algorithm 1.
        Args:
            adam: Moments, rate and step of each parameter, and of `features`, which move only if they have a gradient.
            loss: Scalar, with or without history; nothing moves if it is not finite.
            beta1, beta2, eps: Of Adam.
            grad_sum: [N], to which the length of the derivative by the position on the screen, in units of half the
                screen, is added for every Gaussian that is seen: what density control watches. None = not wanted. With
                `absolute_gradients` that of the sums over pixels of the absolute values along x and y (AbsGS).
            num_seen: [N], to which 1 is added for every Gaussian that is seen; given together with grad_sum.
        Gradient: that of the feature map reaches the features only; the others reach the geometry and the colour.
        """
        self._current.update(adam, loss=loss, beta1=beta1, beta2=beta2, eps=eps, grad_sum=grad_sum, num_seen=num_seen)

    def gradients(
        self,
        into: Mapping[str, Tensor],
        *,
        loss: Tensor,
        grad_sum: Tensor | None = None,
        num_seen: Tensor | None = None,
    ) -> None:
        """Add to `into` the gradients that `update` would take a step by, and change nothing else of the Gaussians.

        So that the gradients of several views become one step, which `adam_steps` then takes.

        Args:
            into: By name of each parameter, and of `features` if their gradient is wanted, of the shape of each.
            loss, grad_sum, num_seen: As in `update`; nothing is added if the loss is not finite.
        """
        self._current.gradients(into, loss=loss, grad_sum=grad_sum, num_seen=num_seen)


class _Composed:
    """The definition: the public pieces in a row, differentiated by autograd."""

    def __init__(self, implementation: str, absolute: bool) -> None:
        self.implementation, self.absolute = implementation, absolute
        self.neighbours = "auto" if implementation == "gsplat" else implementation  # that one renders and nothing else

    def forward(
        self, parameters: Mapping[str, Tensor], features: Tensor | None, viewmat: Tensor, K: Tensor,
        width: int, height: int, *, sh_degree: int, background: Tensor | None, antialiased: bool,
    ) -> RasterOutput:  # fmt: skip
        self.parameters = {name: parameters[name] for name in PARAMETERS}
        if features is not None:
            self.parameters["features"] = features
        self.leaves = leaves = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        self.watched = torch.zeros_like(leaves["means"][None, :, :2]).requires_grad_()
        with torch.enable_grad():
            self.rendered = rasterize(
                leaves["means"], leaves["quats"], leaves["log_scales"].exp(), leaves["logit_opacities"].sigmoid(),
                torch.cat([leaves["sh0"], leaves["shN"]], dim=1), leaves.get("features"), viewmat[None], K[None],
                width, height, sh_degree=sh_degree, backgrounds=None if background is None else background[None],
                **{"absolute2d" if self.absolute else "means2d": self.watched}, antialiased=antialiased,
                implementation=self.implementation,
            )  # fmt: skip
        maps = (m[0].detach().requires_grad_() for m in self.rendered[:4])
        meta = self.rendered.meta
        self.out = RasterOutput(*maps, RasterMeta(meta.radii[0], None, meta.num_pairs))
        return self.out

    def update(
        self, adam: Mapping[str, AdamState],
        *, loss: Tensor, beta1: float, beta2: float, eps: float, grad_sum: Tensor | None, num_seen: Tensor | None,
    ) -> None:  # fmt: skip
        gradients = self._taken(adam, loss, grad_sum, num_seen)
        updates = [(self.leaves[name].detach(), gradient, adam[name]) for name, gradient in gradients.items()]
        adam_steps(updates, beta1=beta1, beta2=beta2, eps=eps, implementation=self.neighbours)
        self._forget()

    def gradients(
        self, into: Mapping[str, Tensor], *, loss: Tensor, grad_sum: Tensor | None, num_seen: Tensor | None
    ) -> None:
        for name, gradient in self._taken(into, loss, grad_sum, num_seen).items():
            into[name].add_(gradient)
        self._forget()

    def _taken(
        self, names: Iterable[str], loss: Tensor, grad_sum: Tensor | None, num_seen: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the gradients of the parameters named that have any; none if the loss is not finite."""
        if not bool(torch.isfinite(loss)):
            return {}
        pairs = [(m, leaf.grad[None]) for m, leaf in zip(self.rendered[:4], self.out[:4]) if leaf.grad is not None]
        if pairs:
            torch.autograd.backward(*zip(*pairs))
        if grad_sum is not None:
            self._watch(grad_sum, num_seen)
        gradients = {name: self._gradient(name) for name in names}
        return {name: gradient for name, gradient in gradients.items() if gradient is not None and gradient.numel()}

    def _forget(self) -> None:
        for value in self.parameters.values():
            value.grad = None
        del self.parameters, self.leaves, self.watched, self.rendered, self.out

    def _watch(self, grad_sum: Tensor, num_seen: Tensor) -> None:
        height, width = self.out.alpha.shape
        seen = (self.out.meta.radii > 0).to(grad_sum.dtype)
        num_seen += seen
        if self.watched.grad is not None:
            half_size = self.watched.new_tensor([width / 2, height / 2])
            grad_sum += (self.watched.grad[0] * half_size).norm(dim=1) * seen

    def _gradient(self, name: str) -> Tensor | None:
        """Return the sum of what the maps and the parameter itself hold; zeros, or None for features, without any."""
        by_maps, own = self.leaves[name].grad, self.parameters[name].grad
        if by_maps is None and own is None:
            return None if name == "features" else torch.zeros_like(self.leaves[name])
        return own if by_maps is None else by_maps if own is None else by_maps + own
