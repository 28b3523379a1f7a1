"""Rendering, its gradient, and pixel weights. The host waits once per camera, for the number of pairs."""

from __future__ import annotations

from ctypes import POINTER, byref, c_float, c_int32, c_int64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _compiled
from ..native import CUDA, PLACE, address, dense, place, row
from ..types import Inputs, Options, PixelWeights, RasterOutput
from .frame import ABSOLUTE, MOMENTS, MOST_PAIRS, Frame, Gradients, Images, Scene, Workspace, build_frame

_SCENE, _FRAME = POINTER(Scene), POINTER(Frame)
_ROWS = [c_void_p] * 4 + [c_int64, c_int64, c_void_p, c_void_p, c_int32, c_void_p, *PLACE]
CUDA.declare(
    {
        "dgr_cuda_weights_count": [_SCENE, _FRAME, c_void_p, c_int64, c_float, c_void_p],
        "dgr_cuda_weights_fill": [_SCENE, _FRAME, c_void_p, c_int64, c_float, c_void_p, c_void_p, c_void_p],
        "dgr_cuda_blend": _ROWS,
        "dgr_cuda_splat": _ROWS,
    }
)
CUDA.declare({"dgr_cuda_allow_matrix_units": [c_int32]}, returns=None)


def allow_matrix_units(allow: bool) -> None:
    """Let backward sum with matrix units where the GPU has them (the default), or make it use shuffles everywhere."""
    CUDA.dgr_cuda_allow_matrix_units(int(allow))


class _View(NamedTuple):
    """One camera's projected Gaussians and tile lists: the structs, and the memory they point to."""

    scene: Scene
    frame: Frame
    num_pairs: int
    memory: tuple[Any, ...]


class _Renderer:
    """What `_compiled.Renderer` asks for.

    Attributes:
        expected_pairs: Pairs to have room for beforehand, by number of Gaussians, width and height: a fifth more than
            in the last such view. With room at hand the lists are queued before the host waits for the number.
    """

    MOST_EXPECTATIONS = 64

    def __init__(self) -> None:
        self.expected_pairs: dict[tuple[int, int, int], int] = {}

    def view(
        self, inputs: Inputs, camera: int, options: Options, radii: int | None, centres: int | None,
        last: Tensor | None, *, for_backward: bool,
    ) -> _View:  # fmt: skip
        """Return one camera's view; `inputs` are dense and must outlive it, radii and centres are addresses."""
        device, stream = place(inputs.means)
        scene = Scene(**_compiled.scene_fields(inputs, camera, options), device=device, stream=stream)
        frame, workspace = Frame(radii=radii, centres=centres, last=address(last)), Workspace(inputs.means.device)
        alike = (scene.n, scene.width, scene.height)
        workspace.num_pairs = self.expected_pairs.get(alike, -1)
        pairs = build_frame(scene, frame, workspace, for_backward=for_backward)
        if len(self.expected_pairs) > self.MOST_EXPECTATIONS:
            self.expected_pairs.clear()
        self.expected_pairs[alike] = min(int(1.2 * pairs), MOST_PAIRS)
        for name in ("order", "lists"):  # only needed until here, and torch frees in stream order
            workspace.parts.pop(name, None)
        return _View(scene, frame, pairs, (workspace, last))

    def render(
        self, inputs: Inputs, camera: int, options: Options, targets: list[int | None], *, for_backward: bool
    ) -> _View:
        """Render one camera, see `_compiled`."""
        *maps, radii, centres = targets
        last = inputs.means.new_empty(options.height, options.width, dtype=torch.int32)
        view = self.view(inputs, camera, options, radii, centres, last, for_backward=for_backward)
        CUDA.dgr_cuda_forward(byref(view.scene), byref(view.frame), byref(Images(*maps)))
        return view

    def differentiate(
        self, views: list[_View], inputs: Inputs, options: Options,
        incoming: list[Tensor | None], maps: tuple[Tensor, ...], outgoing: Inputs,
    ) -> None:  # fmt: skip
        """Fill the gradients of all cameras, see `_compiled`."""
        by_image, by_features, by_alpha, by_depth = incoming
        means, backgrounds = inputs.means, outgoing.backgrounds
        moved = any(g is not None for g in (by_image, by_alpha, by_depth))
        moved = moved or (by_features is not None and options.features_move_geometry)
        moved = moved and any(outgoing[i] is not None for i in (0, 1, 2, 3, 4, 9, 10))
        for gradient in outgoing[5:6] if moved else outgoing:  # the kernels add to those by the features
            if gradient is not None:
                gradient.zero_()
        if backgrounds is not None and by_image is not None:
            backgrounds.copy_(torch.einsum("chwk,chw->ck", by_image, 1 - maps[2]))
        elif backgrounds is not None:
            backgrounds.zero_()
        moments = means.new_empty(means.shape[0], MOMENTS) if moved else None
        for c, view in enumerate(views if means.shape[0] else ()):
            view.scene.stream = place(means)[1]
            gradients = Gradients(
                *(row(t, c) for t in (*incoming, *maps)),
                address(None if moments is None else moments.zero_()),
                address(outgoing.features), *map(address, outgoing[:5]), row(outgoing.means2d, c), c > 0,
                outgoing.absolute2d is not None,
            )  # fmt: skip
            structs = (byref(view.scene), byref(view.frame), byref(gradients))
            CUDA.dgr_cuda_backward_blend(*structs)
            if moved:
                CUDA.dgr_cuda_backward_project(*structs)
            if moments is not None and outgoing.absolute2d is not None:
                outgoing.absolute2d[c] = moments[:, ABSOLUTE]


_renderer = _Renderer()


def rasterize(inputs: Inputs, options: Options) -> RasterOutput:
    """Return the rendered maps."""
    return _compiled.rasterize(_renderer, inputs, options)


def pixel_weights(inputs: Inputs, options: Options, pixels: Tensor, min_weight: float) -> PixelWeights:
    """Return the sparse blending weights of the pixels of the first camera."""
    inputs, means, pixels = Inputs(*map(dense, inputs)), inputs.means, pixels.contiguous()
    radii = means.new_empty(means.shape[0], dtype=torch.int32)
    view = _renderer.view(inputs, 0, options, address(radii), None, None, for_backward=False)
    request = (byref(view.scene), byref(view.frame), address(pixels), pixels.shape[0], min_weight)
    offsets = torch.zeros(pixels.shape[0] + 1, dtype=torch.int64, device=means.device)
    CUDA.dgr_cuda_weights_count(*request, address(offsets[1:]))
    torch.cumsum(offsets, 0, out=offsets)
    total = int(offsets[-1])
    ids = torch.empty(total, dtype=torch.int32, device=means.device)
    weights = means.new_empty(total)
    CUDA.dgr_cuda_weights_fill(*request, address(offsets), address(ids), address(weights))
    del view  # the lists must stay until the kernels that read them are queued
    return PixelWeights(offsets, ids, weights, means.shape[0])


def blend_rows(rows: tuple[Any, ...], features: Tensor) -> Tensor:
    """Return the sums at rows given as the kernels take them: four addresses, two counts, address of a sample."""
    out = features.new_empty(rows[4], features.shape[1])
    CUDA.dgr_cuda_blend(*rows, address(features), features.shape[1], address(out), *place(features))
    return out


def scatter_rows(rows: tuple[Any, ...], values: Tensor, num_gaussians: int, out: Tensor | None = None) -> Tensor:
    """Return the transpose of `blend_rows`, added to `out` if that is given."""
    values = values.contiguous()
    out = values.new_zeros(num_gaussians, values.shape[1]) if out is None else out
    CUDA.dgr_cuda_splat(*rows, address(values), values.shape[1], address(out), *place(values))
    return out


def _gather(weights: PixelWeights, features: Tensor, rows: Tensor | None) -> Tensor:
    parts = weights.dense(rows)
    count = weights.num_rows if rows is None else rows.numel()
    return blend_rows((*map(address, parts), count, weights.num_rows, None), features)


def blend(weights: PixelWeights, features: Tensor, rows: Tensor | None) -> Tensor:
    """Return the weighted sums of features, [P, D], differentiable in them; NaN for a row that does not exist."""
    return _compiled.blend(_gather, scatter, weights, features, rows)


def scatter(weights: PixelWeights, values: Tensor, num_gaussians: int, rows: Tensor | None) -> Tensor:
    """Return per-Gaussian weighted sums of pixel values, [N, D]; equal up to the order of float sums between runs."""
    parts = weights.dense(rows)
    count = weights.num_rows if rows is None else rows.numel()
    return scatter_rows((*map(address, parts), count, weights.num_rows, None), values, num_gaussians)
