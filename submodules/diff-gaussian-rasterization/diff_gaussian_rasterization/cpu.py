"""The compiled implementation for float32 tensors on the CPU. The structs mirror csrc/cpu/dgr.h field by field."""

from __future__ import annotations

import sys
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from . import _compiled
from .native import CPU, address, dense, row
from .types import PixelWeights, RasterOutput


class _Scene(Structure):
    _fields_ = [
        ("n", c_int64),
        *((name, c_void_p) for name in ("means", "quats", "scales", "opacities", "colors", "features")),
        *((name, c_void_p) for name in ("viewmat", "intrinsics", "background", "means2d")),
        ("near_z", c_float),
        *((name, c_int32) for name in ("sh_coeffs", "sh_degree", "feature_dim", "width", "height")),
        *((name, c_int32) for name in ("features_move_geometry", "threads")),
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
    ]


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
        "dgr_constants": [_P],
    },
    returns=None,
)


def constants() -> list[float]:
    """Return the constants of the kernels: alpha min and max, least transmittance, low-pass, frustum margin."""
    values = torch.empty(5)
    CPU.dgr_constants(values.data_ptr())
    return values.tolist()


def _scene(inputs: tuple[Tensor | None, ...], camera: int, options: dict[str, Any]) -> _Scene:
    """Return the struct for one camera; `inputs` are dense and must outlive it."""
    per_gaussian, per_camera = map(address, inputs[:6]), (row(t, camera) for t in inputs[6:])
    numbers = _compiled.scene_numbers(inputs, options)
    return _Scene(len(inputs[0]), *per_gaussian, *per_camera, **numbers, threads=torch.get_num_threads())


class _View:
    """One camera's frame in the C library, given back when Python forgets it."""

    def __init__(self, scene: _Scene, images: _Images) -> None:
        self.scene = scene
        pairs = c_int64()
        self.handle = CPU.dgr_forward(byref(scene), byref(images), byref(pairs))
        if not self.handle:
            raise MemoryError("not enough memory for the tile lists of this view")
        self.num_pairs = pairs.value

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            CPU.dgr_release(self.handle)


def render(
    inputs: tuple[Tensor | None, ...], camera: int, options: dict[str, Any], targets: tuple[int | None, ...]
) -> _View:
    """Render one camera, see `_compiled.Renderer`."""
    return _View(_scene(inputs, camera, options), _Images(*targets))


def differentiate(
    views: list[_View], inputs: tuple[Tensor | None, ...], options: dict[str, Any],  # noqa: ARG001
    incoming: tuple[Tensor | None, ...], maps: tuple[Tensor, ...], outgoing: list[Tensor | None],
) -> None:  # fmt: skip
    """Fill the gradients of all cameras, see `_compiled.Renderer`."""
    for c, view in enumerate(views):
        per_camera, shared = (*incoming, *maps), map(address, outgoing[:6])
        gradients = _Gradients(
            *(row(t, c) for t in per_camera), *shared, *(row(t, c) for t in outgoing[8:]), accumulate=c > 0
        )
        if CPU.dgr_backward(view.handle, byref(view.scene), byref(gradients)) != 0:
            raise MemoryError("not enough memory for the gradients of this view")


def rasterize(*arguments: Any, **options: Any) -> RasterOutput:
    """Return the rendered maps; arguments as in `api.rasterize`, already checked."""
    return _compiled.rasterize(sys.modules[__name__], arguments[:8], *arguments[8:], **options)


def pixel_weights(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, viewmat: Tensor, K: Tensor,
    width: int, height: int, pixels: Tensor, *, near: float, min_weight: float,
) -> PixelWeights:  # fmt: skip
    """Return the sparse blending weights of the pixels; arguments as in `api.pixel_weights`, already checked."""
    inputs = tuple(dense(t) for t in (means, quats, scales, opacities, None, None, viewmat[None], K[None], None, None))
    scene, pixels = _scene(inputs, 0, {"width": width, "height": height, "near": near}), pixels.contiguous()
    offsets = torch.empty(pixels.shape[0] + 1, dtype=torch.int64)
    handle = CPU.dgr_weights_count(byref(scene), address(pixels), pixels.shape[0], min_weight, address(offsets))
    if not handle:
        raise MemoryError("not enough memory for the tile lists of this view")
    total = int(offsets[-1])
    ids, weights = torch.empty(total, dtype=torch.int32), torch.empty(total)
    CPU.dgr_weights_fill(handle, byref(scene), address(offsets), address(ids), address(weights))
    return PixelWeights(offsets, ids, weights, means.shape[0])


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
