"""What the compiled implementations share: autograd around their calls for one camera, and around blending."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .native import dense, row
from .types import PixelWeights, RasterMeta, RasterOutput

INPUTS = (
    "means", "quats", "scales", "opacities", "colors", "features", "viewmats", "intrinsics", "backgrounds", "means2d",
)  # fmt: skip


class Renderer(Protocol):
    """An implementation's part; `inputs` are dense tensors in the order of INPUTS, maps those of a RasterOutput."""

    def render(
        self, inputs: tuple[Tensor | None, ...], camera: int, options: dict[str, Any], targets: tuple[int | None, ...]
    ) -> Any:
        """Fill the targets, addresses of the four maps, radii and centres; return a view with its `num_pairs`."""

    def differentiate(
        self, views: list[Any], inputs: tuple[Tensor | None, ...], options: dict[str, Any],
        incoming: tuple[Tensor | None, ...], maps: tuple[Tensor, ...], outgoing: list[Tensor | None],
    ) -> None:  # fmt: skip
        """Fill `outgoing`, one per input or None if not wanted, from the gradients by the maps."""


class _Rasterize(Function):
    """Differentiable render of all cameras; backward returns one gradient per input, in the order of forward."""

    @staticmethod
    def forward(ctx: Any, renderer: Renderer, options: dict[str, Any], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        inputs = tuple(dense(t) for t in tensors)
        means, features, cameras = inputs[0], inputs[5], inputs[6]
        assert means is not None
        assert cameras is not None
        shape = (cameras.shape[0], options["height"], options["width"])
        maps = (
            means.new_empty(*shape, 3), means.new_empty(*shape, 0 if features is None else features.shape[1]),
            means.new_empty(shape), means.new_empty(shape),
        )  # fmt: skip
        radii = means.new_empty(shape[0], means.shape[0], dtype=torch.int32)
        centres = means.new_empty(shape[0], means.shape[0], 2)
        options["for_backward"] = any(ctx.needs_input_grad)
        views = [
            renderer.render(inputs, c, options, tuple(row(t, c) for t in (*maps, radii, centres)))
            for c in range(shape[0])
        ]
        options["num_pairs"] = sum(view.num_pairs for view in views)
        if options["for_backward"]:
            # the detached copies keep the memory that the kernels read; versions are checked on the originals
            ctx.state = (renderer, views, inputs, options, tuple(t.detach() for t in maps))
            ctx.memory = (radii.detach(), centres.detach())
            ctx.save_for_backward(*(t for t in tensors if t is not None))
        ctx.mark_non_differentiable(radii, centres)
        ctx.set_materialize_grads(False)
        return (*maps, radii, centres)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # raises if an input was changed in place since forward
        renderer, views, inputs, options, maps = ctx.state
        wanted = ctx.needs_input_grad[2:]
        outgoing = [torch.empty_like(t) if t is not None and w else None for t, w in zip(inputs, wanted)]
        renderer.differentiate(views, inputs, options, tuple(dense(g) for g in incoming[:4]), maps, outgoing)
        return (None, None, *outgoing)


def rasterize(
    renderer: Renderer, tensors: tuple[Tensor | None, ...], width: int, height: int, *, means2d: Tensor | None,
    backgrounds: Tensor | None, **options: Any,
) -> RasterOutput:  # fmt: skip
    """Return the maps; `tensors` and options as in `api.rasterize`, already checked.

    Raises:
        ValueError: A camera tensor requires a gradient.
    """
    require_fixed_cameras("the compiled kernels give", *tensors[6:])
    options |= {"width": width, "height": height}
    *maps, radii, centres = _Rasterize.apply(renderer, options, *tensors, backgrounds, means2d)
    return RasterOutput(*maps, RasterMeta(radii, centres, options["num_pairs"]))


def require_fixed_cameras(who: str, *cameras: Tensor | None) -> None:
    """Raise ValueError if a camera tensor requires a gradient."""
    if any(t is not None and t.requires_grad for t in cameras):
        raise ValueError(f"{who} no gradient to viewmats and Ks; detach them, or pass implementation='reference'")


def scene_numbers(inputs: tuple[Tensor | None, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a scene struct that are no addresses."""
    colors, features = inputs[4], inputs[5]
    return {
        "near_z": options["near"], "width": options["width"], "height": options["height"],
        "sh_coeffs": colors.shape[1] if colors is not None and colors.ndim == 3 else 0,
        "sh_degree": -1 if options.get("sh_degree") is None else options["sh_degree"],
        "feature_dim": 0 if features is None else features.shape[1],
        "features_move_geometry": options.get("features_move_geometry", False),
    }  # fmt: skip


Gather = Callable[[PixelWeights, Tensor, Tensor | None], Tensor]
Scatter = Callable[[PixelWeights, Tensor, int, Tensor | None], Tensor]


class _Blend(Function):
    @staticmethod
    def forward(
        ctx: Any, gather: Gather, scatter: Scatter, weights: PixelWeights, features: Tensor, rows: Tensor | None
    ) -> Tensor:
        ctx.state = (scatter, weights, features.shape[0], rows)
        return gather(weights, features.detach().contiguous(), rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        scatter, weights, num_gaussians, rows = ctx.state
        return None, None, None, scatter(weights, incoming, num_gaussians, rows), None


def blend(gather: Gather, scatter: Scatter, weights: PixelWeights, features: Tensor, rows: Tensor | None) -> Tensor:
    """Return the weighted sums of features that `gather` computes, differentiable in them through `scatter`."""
    return _Blend.apply(gather, scatter, weights, features, rows)
