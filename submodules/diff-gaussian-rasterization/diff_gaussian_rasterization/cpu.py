"""The compiled implementation for float32 tensors on the CPU. The structs mirror csrc/cpu/dgr.h field by field."""

from __future__ import annotations

import sys
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from . import _compiled
from .native import CPU, address, dense, row
from .types import Inputs, Options, PixelWeights, RasterOutput


class _Scene(Structure):
    _fields_ = [
        ("n", c_int64),
        *((name, c_void_p) for name in ("means", "quats", "scales", "opacities", "colors", "features")),
        *((name, c_void_p) for name in ("viewmat", "intrinsics", "background", "means2d")),
        ("near_z", c_float),
        *((name, c_int32) for name in ("sh_coeffs", "sh_degree", "feature_dim", "width", "height")),
        *((name, c_int32) for name in ("features_move_geometry", "threads", "antialiased")),
    ]


class _Images(Structure):
    _fields_ = [(name, c_void_p) for name in ("image", "features", "alpha", "depth", "radii", "centres")]


class _Gradients(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("image", "features", "alpha", "depth")),
        *((name, c_void_p) for name in ("out_image", "out_features", "out_alpha", "out_depth")),
        *((name, c_void_p) for name in ("means", "quats", "scales", "opacities")),
        *((name, c_void_p) for name in ("colors", "feature_rows", "background", "means2d")),
        ("accumulate", c_int32),
        ("absolute2d", c_void_p),
    ]


_NO_LISTS = "not enough memory for the tile lists of this view, or 2^32 entries in them: its Gaussians are too large"
_P, _SCENE = c_void_p, POINTER(_Scene)
CPU.declare({"dgr_forward": [_SCENE, POINTER(_Images), POINTER(c_int64)]}, returns=c_void_p)
CPU.declare({"dgr_weights_count": [_SCENE, _P, c_int64, c_float, _P]}, returns=c_void_p)
CPU.declare({"dgr_backward": [_P, _SCENE, POINTER(_Gradients)]}, returns=c_int32)
CPU.declare(
    {
        "dgr_release": [_P],
        "dgr_weights_fill": [_P, _SCENE, _P, _P, _P],
        "dgr_blend": [_P] * 5 + [c_int32, c_int64, c_int32, _P],
        "dgr_splat": [_P] * 5 + [c_int32, c_int64, c_int64, c_int32, _P, _P],
    },
    returns=None,
)


def _scene(inputs: Inputs, camera: int, options: Options) -> _Scene:
    return _Scene(**_compiled.scene_fields(inputs, camera, options), threads=torch.get_num_threads())


class _View:
    """One camera's frame in the C library, given back when Python forgets it."""

    def __init__(self, scene: _Scene, images: _Images) -> None:
        self.scene = scene
        pairs = c_int64()
        self.handle = CPU.dgr_forward(byref(scene), byref(images), byref(pairs))
        if not self.handle:
            raise MemoryError(_NO_LISTS)
        self.num_pairs = pairs.value

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            CPU.dgr_release(self.handle)


def render(inputs: Inputs, camera: int, options: Options, targets: list[int | None], *, for_backward: bool) -> _View:  # noqa: ARG001
    """Render one camera, see `_compiled`."""
    return _View(_scene(inputs, camera, options), _Images(*targets))


def differentiate(
    views: list[_View], inputs: Inputs, options: Options,  # noqa: ARG001
    incoming: list[Tensor | None], maps: tuple[Tensor, ...], outgoing: Inputs,
) -> None:  # fmt: skip
    """Fill the gradients of all cameras, see `_compiled`."""
    for c, view in enumerate(views):
        per_camera, shared = (*incoming, *maps), map(address, outgoing[:6])
        gradients = _Gradients(
            *(row(t, c) for t in per_camera), *shared, *(row(t, c) for t in outgoing[8:10]), c > 0,
            row(outgoing.absolute2d, c),
        )  # fmt: skip
        if CPU.dgr_backward(view.handle, byref(view.scene), byref(gradients)) != 0:
            raise MemoryError("not enough memory for the gradients of this view")


def rasterize(inputs: Inputs, options: Options) -> RasterOutput:
    """Return the rendered maps."""
    return _compiled.rasterize(sys.modules[__name__], inputs, options)


def pixel_weights(inputs: Inputs, options: Options, pixels: Tensor, min_weight: float) -> PixelWeights:
    """Return the sparse blending weights of the pixels of the first camera."""
    inputs, pixels = Inputs(*map(dense, inputs)), pixels.contiguous()
    scene = _scene(inputs, 0, options)
    offsets = torch.empty(pixels.shape[0] + 1, dtype=torch.int64)
    handle = CPU.dgr_weights_count(byref(scene), address(pixels), pixels.shape[0], min_weight, address(offsets))
    if not handle:
        raise MemoryError(_NO_LISTS)
    total = int(offsets[-1])
    ids, weights = torch.empty(total, dtype=torch.int32), torch.empty(total)
    CPU.dgr_weights_fill(handle, byref(scene), address(offsets), address(ids), address(weights))
    return PixelWeights(offsets, ids, weights, len(inputs.means))


def _gather(weights: PixelWeights, features: Tensor, rows: Tensor | None) -> Tensor:
    parts = weights.dense(rows)
    out = torch.empty(weights.num_rows if rows is None else rows.numel(), features.shape[1])
    CPU.dgr_blend(*map(address, parts), address(features), *reversed(out.shape), torch.get_num_threads(), address(out))
    return out


def blend(weights: PixelWeights, features: Tensor, rows: Tensor | None) -> Tensor:
    """Return the weighted sums of features, [P, D]; differentiable in the features."""
    return _compiled.blend(_gather, scatter, weights, features, rows)


def scatter(weights: PixelWeights, values: Tensor, num_gaussians: int, rows: Tensor | None) -> Tensor:
    """Return per-Gaussian weighted sums of pixel values, [N, D].

    Bitwise repeatable for an equal number of threads.
    """
    parts, values = weights.dense(rows), values.contiguous()
    count, dim = values.shape
    # equal results for an equal number of threads: each part of the rows has its own sums
    shares = max(1, min(torch.get_num_threads(), 8, count))
    out = torch.zeros(num_gaussians, dim)
    copies = torch.zeros(shares - 1, num_gaussians, dim)
    CPU.dgr_splat(
        *map(address, parts), address(values), dim, count, num_gaussians, shares, address(copies), address(out)
    )
    return out
