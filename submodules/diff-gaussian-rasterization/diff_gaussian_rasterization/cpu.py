"""The compiled implementation for float32 tensors on the CPU: autograd around the C library.

The structs mirror csrc/cpu/dgr.h field by field. ctypes releases the interpreter lock during a call.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import _compiled
from ._library import load
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


def _bind() -> ctypes.CDLL:
    """Declare argument types once; ctypes then converts Python numbers to the right width."""
    library = load()
    pointer = c_void_p
    signatures = {
        "dgr_forward": (c_void_p, [POINTER(_Scene), POINTER(_Images), POINTER(c_int64)]),
        "dgr_backward": (c_int32, [pointer, POINTER(_Scene), POINTER(_Gradients)]),
        "dgr_release": (None, [pointer]),
        "dgr_weights_count": (c_void_p, [POINTER(_Scene), pointer, c_int64, c_float, pointer]),
        "dgr_weights_fill": (None, [pointer, POINTER(_Scene), pointer, pointer, pointer]),
        "dgr_blend": (None, [pointer] * 5 + [c_int32, c_int64, c_int32, pointer]),
        "dgr_splat": (None, [pointer] * 5 + [c_int32, c_int64, c_int64, c_int32, pointer, pointer]),
        "dgr_adam": (None, [pointer] * 4 + [c_int64] + [c_double] * 4 + [c_int64, c_int32]),
        "dgr_ssim": (c_double, [pointer, pointer, c_int32, c_int32, c_int32, pointer]),
        "dgr_ssim_backward": (c_int32, [pointer, pointer, pointer, c_int32, c_int32, c_int32, c_float, pointer]),
        "dgr_constants": (None, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_lib = _bind()


def constants() -> list[float]:
    """Return the constants of the kernels: alpha min and max, least transmittance, low-pass, frustum margin."""
    values = torch.empty(5)
    _lib.dgr_constants(values.data_ptr())
    return values.tolist()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().contiguous()


class _View:
    """One camera's frame in the C library, given back when Python forgets it."""

    def __init__(self, scene: _Scene, images: _Images) -> None:
        self.scene = scene
        pairs = c_int64()
        self.handle = _lib.dgr_forward(byref(scene), byref(images), byref(pairs))
        if not self.handle:
            raise MemoryError("not enough memory for the tile lists of this view")
        self.num_pairs = pairs.value

    def backward(self, gradients: _Gradients) -> None:
        if _lib.dgr_backward(self.handle, byref(self.scene), byref(gradients)) != 0:
            raise MemoryError("not enough memory for the gradients of this view")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            _lib.dgr_release(self.handle)


def _scene(inputs: tuple[Tensor | None, ...], camera: int, options: dict) -> _Scene:
    """Return the struct for one camera; `inputs` are dense and must outlive it."""
    means, quats, scales, opacities, colors, features, viewmats, Ks, backgrounds, means2d = inputs
    return _Scene(
        n=means.shape[0], means=_address(means), quats=_address(quats), scales=_address(scales),
        opacities=_address(opacities), colors=_address(colors), features=_address(features),
        viewmat=_address(viewmats[camera]), intrinsics=_address(Ks[camera]),
        background=None if backgrounds is None else _address(backgrounds[camera]),
        means2d=None if means2d is None else _address(means2d[camera]),
        near_z=options["near"], width=options["width"], height=options["height"],
        sh_coeffs=colors.shape[1] if colors is not None and colors.ndim == 3 else 0,
        sh_degree=-1 if options["sh_degree"] is None else options["sh_degree"],
        feature_dim=0 if features is None else features.shape[1],
        features_move_geometry=options["features_move_geometry"], threads=torch.get_num_threads(),
    )  # fmt: skip


class _Rasterize(Function):
    """Differentiable render of all cameras; backward returns one gradient per input, in the order of forward."""

    @staticmethod
    def forward(ctx, options: dict, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        inputs = tuple(_dense(t) for t in tensors)
        n, dim = inputs[0].shape[0], 0 if inputs[5] is None else inputs[5].shape[1]
        shape = (inputs[6].shape[0], options["height"], options["width"])
        image, features = torch.empty(*shape, 3), torch.empty(*shape, dim)
        alpha, depth = torch.empty(shape), torch.empty(shape)
        radii, centres = torch.empty(shape[0], n, dtype=torch.int32), torch.empty(shape[0], n, 2)
        views = []
        for c in range(shape[0]):
            maps = (image[c], features[c], alpha[c], depth[c], radii[c], centres[c])
            views.append(_View(_scene(inputs, c, options), _Images(*(m.data_ptr() for m in maps))))
        ctx.num_pairs = options["num_pairs"] = sum(view.num_pairs for view in views)
        if any(ctx.needs_input_grad):
            ctx.options, ctx.views = options, views
            # the detached copies keep the memory that the frames point to; versions are checked on the originals
            ctx.dense, ctx.maps = inputs, tuple(t.detach() for t in (image, features, alpha, depth))
            ctx.save_for_backward(*(t for t in tensors if t is not None))
        ctx.mark_non_differentiable(radii, centres)
        ctx.set_materialize_grads(False)
        return image, features, alpha, depth, radii, centres

    @staticmethod
    @once_differentiable
    def backward(ctx, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # raises if an input was changed in place since forward
        cotangents = tuple(_dense(g) for g in incoming[:4])
        inputs, wanted = ctx.dense, ctx.needs_input_grad[1:]
        outgoing = [torch.empty_like(t) if t is not None and w else None for t, w in zip(inputs, wanted)]
        for c, view in enumerate(ctx.views):
            pick = lambda tensors, c=c: tuple(_address(t if t is None else t[c]) for t in tensors)  # noqa: E731
            view.backward(
                _Gradients(
                    *pick(cotangents),
                    *pick(ctx.maps),
                    *(_address(t) for t in outgoing[:6]),
                    *pick(outgoing[8:10]),
                    accumulate=c > 0,
                )  # fmt: skip
            )
        return (None, *outgoing)


def rasterize(*arguments: object, **options: object) -> RasterOutput:
    """Return the rendered maps; arguments as in `api.rasterize`, already checked."""
    return _compiled.rasterize(_Rasterize, *arguments, **options)


def pixel_weights(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, viewmat: Tensor, K: Tensor,
    width: int, height: int, pixels: Tensor, *, near: float, min_weight: float,
) -> PixelWeights:  # fmt: skip
    """Return the sparse blending weights of the pixels; arguments as in `api.pixel_weights`, already checked."""
    options = {"width": width, "height": height, "sh_degree": None, "near": near, "features_move_geometry": False}
    inputs = tuple(_dense(t) for t in (means, quats, scales, opacities, None, None, viewmat[None], K[None], None, None))
    scene, pixels = _scene(inputs, 0, options), pixels.contiguous()
    offsets = torch.empty(pixels.shape[0] + 1, dtype=torch.int64)
    handle = _lib.dgr_weights_count(byref(scene), _address(pixels), pixels.shape[0], min_weight, _address(offsets))
    if not handle:
        raise MemoryError("not enough memory for the tile lists of this view")
    total = int(offsets[-1])
    ids, weights = torch.empty(total, dtype=torch.int32), torch.empty(total)
    _lib.dgr_weights_fill(handle, byref(scene), _address(offsets), _address(ids), _address(weights))
    return PixelWeights(offsets, ids, weights)


def _csr(weights: PixelWeights, rows: Tensor | None) -> tuple[tuple, tuple[Tensor, ...]]:
    """Return the arguments that describe the chosen rows, and the tensors that must outlive the call."""
    memory = tuple(t.contiguous() for t in (*weights, *(() if rows is None else (rows,))))
    return tuple([*(_address(t) for t in memory), None][:4]), memory


class _Blend(Function):
    @staticmethod
    def forward(ctx, weights: PixelWeights, features: Tensor, rows: Tensor | None) -> Tensor:
        csr, memory = _csr(weights, rows)
        features = features.detach().contiguous()
        ctx.arguments, ctx.num_gaussians = (weights, rows), features.shape[0]
        out = torch.empty(weights.num_rows if rows is None else rows.numel(), features.shape[1])
        _lib.dgr_blend(
            *csr, _address(features), features.shape[1], out.shape[0], torch.get_num_threads(), _address(out)
        )
        del memory
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming: Tensor) -> tuple[None, Tensor, None]:
        weights, rows = ctx.arguments
        return None, splat(weights, incoming, ctx.num_gaussians, rows), None


def blend(weights: PixelWeights, features: Tensor, rows: Tensor | None) -> Tensor:
    """Return the weighted sums of features, [P, D]; differentiable in the features."""
    return _Blend.apply(weights, features, rows)


def splat(weights: PixelWeights, values: Tensor, num_gaussians: int, rows: Tensor | None) -> Tensor:
    """Return per-Gaussian weighted sums of pixel values, [N, D].

    Bitwise repeatable for an equal number of threads.
    """
    csr, memory = _csr(weights, rows)
    values = values.contiguous()
    count, dim = values.shape
    # equal results for an equal number of threads: each part of the rows has its own sums
    parts = max(1, min(torch.get_num_threads(), 8, count))
    out = torch.zeros(num_gaussians, dim)
    copies = torch.zeros(parts - 1, num_gaussians, dim)
    _lib.dgr_splat(*csr, _address(values), dim, count, num_gaussians, parts, _address(copies), _address(out))
    del memory
    return out


class _Ssim(Function):
    @staticmethod
    def forward(ctx, image: Tensor, target: Tensor) -> Tensor:
        image, target = image.detach().contiguous(), target.contiguous()
        height, width, threads = image.shape[0], image.shape[1], torch.get_num_threads()
        maps = torch.empty(3, *image.shape) if ctx.needs_input_grad[0] else None
        total = _lib.dgr_ssim(_address(image), _address(target), width, height, threads, _address(maps))
        ctx.dense = (image, target, maps)
        return torch.tensor(total / image.numel(), dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming: Tensor) -> tuple[Tensor, None]:
        image, target, maps = ctx.dense
        height, width, threads = image.shape[0], image.shape[1], torch.get_num_threads()
        grad = torch.empty_like(image)
        scale = float(incoming) / image.numel()
        addresses = (_address(image), _address(target), _address(maps))
        if _lib.dgr_ssim_backward(*addresses, width, height, threads, scale, _address(grad)) != 0:
            raise MemoryError("not enough memory for the gradient of SSIM")
        return grad, None


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Return mean SSIM of two images [H, W, 3], a scalar; differentiable in the image."""
    return _Ssim.apply(image, target)


def adam_step(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor,
    *, lr: float, beta1: float, beta2: float, eps: float, step: int,
) -> None:  # fmt: skip
    """Update a parameter and its moments in place by one Adam step with bias correction."""
    grad = grad.contiguous()
    _lib.dgr_adam(
        _address(param), _address(grad), _address(exp_avg), _address(exp_avg_sq), param.numel(),
        lr, beta1, beta2, eps, step, torch.get_num_threads(),
    )  # fmt: skip
    torch.autograd.graph.increment_version([param, exp_avg, exp_avg_sq])
