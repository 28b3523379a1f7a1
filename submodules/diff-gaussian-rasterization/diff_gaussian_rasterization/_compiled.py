"""What the compiled implementations share: autograd around their calls for one camera, and around blending."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .native import address, dense, row
from .types import Inputs, Options, PixelWeights, RasterMeta, RasterOutput


class _Rasterize(Function):
    """Differentiable render of all cameras; backward returns one gradient per input, in the order of forward.

    A `renderer` has two functions. render(inputs, camera, options, targets, for_backward=) fills the targets, addresses
    of the four maps, radii and centres, and returns a view with its `num_pairs`. differentiate(views, inputs, options,
    incoming, maps, outgoing) fills `outgoing`, one tensor per input or None, from the gradients by the maps.
    """

    @staticmethod
    def forward(ctx: Any, renderer: Any, options: Options, num_pairs: list[int], *tensors: Tensor) -> Any:
        inputs, wanted = Inputs(*map(dense, tensors)), any(ctx.needs_input_grad)
        make, n = inputs.means.new_empty, len(inputs.means)
        dim = 0 if inputs.features is None else inputs.features.shape[1]
        shape = (len(inputs.viewmats), options.height, options.width)
        maps = (make(*shape, 3), make(*shape, dim), make(shape), make(shape))
        radii, centres = make(shape[0], n, dtype=torch.int32), make(shape[0], n, 2)
        views = []
        for c in range(shape[0]):
            targets = [row(t, c) for t in (*maps, radii, centres)]
            views.append(renderer.render(inputs, c, options, targets, for_backward=wanted))
        num_pairs.append(sum(view.num_pairs for view in views))
        if wanted:
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
        wanted = ctx.needs_input_grad[3:]
        outgoing = Inputs(*(torch.empty_like(t) if t is not None and w else None for t, w in zip(inputs, wanted)))
        renderer.differentiate(views, inputs, options, [dense(g) for g in incoming[:4]], maps, outgoing)
        return (None, None, None, *outgoing)


def rasterize(renderer: Any, inputs: Inputs, options: Options) -> RasterOutput:
    """Return the maps.

    Raises:
        ValueError: A camera tensor requires a gradient.
    """
    require_fixed_cameras("the compiled kernels give", inputs)
    num_pairs: list[int] = []
    *maps, radii, centres = _Rasterize.apply(renderer, options, num_pairs, *inputs)
    return RasterOutput(*maps, RasterMeta(radii, centres, num_pairs[0]))


def require_fixed_cameras(who: str, inputs: Inputs) -> None:
    """Raise ValueError if a camera tensor requires a gradient."""
    if inputs.viewmats.requires_grad or inputs.Ks.requires_grad:
        raise ValueError(f"{who} no gradient to viewmats and Ks; detach them, or pass implementation='reference'")


def scene_fields(inputs: Inputs, camera: int, options: Options) -> dict[str, Any]:
    """Return what the scene structs of both libraries have in common; `inputs` are dense and must outlive it."""
    colors, features = inputs.colors, inputs.features
    names = ("viewmat", "intrinsics", "background", "means2d")
    return {
        "n": len(inputs.means), **dict(zip(Inputs._fields, map(address, inputs[:6]))),
        **{name: row(t, camera) for name, t in zip(names, inputs[6:])},
        "near_z": options.near, "width": options.width, "height": options.height,
        "sh_coeffs": colors.shape[1] if colors is not None and colors.ndim == 3 else 0,
        "sh_degree": -1 if options.sh_degree is None else options.sh_degree,
        "feature_dim": 0 if features is None else features.shape[1],
        "features_move_geometry": options.features_move_geometry, "antialiased": options.antialiased,
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
