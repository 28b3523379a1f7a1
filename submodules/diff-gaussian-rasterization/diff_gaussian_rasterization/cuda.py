"""The compiled implementation for float32 tensors on an NVIDIA GPU: autograd around the CUDA library.

The structs mirror csrc/cuda/dgr_cuda.h field by field. All memory comes from torch's caching allocator, all work goes
to torch's current stream; the host waits once per camera, for the number of (tile, Gaussian) pairs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import _compiled
from ._library import load
from .types import PixelWeights, RasterOutput

TILE = 16  # pixels, kTile of csrc/cuda/splat.cuh
SPLAT_FLOATS = 12
MOMENTS = 16


class _Scene(Structure):
    _fields_ = [
        ("n", c_int64),
        *((name, c_void_p) for name in ("means", "quats", "scales", "opacities", "colors", "features")),
        *((name, c_void_p) for name in ("viewmat", "intrinsics", "background", "means2d")),
        ("near_z", c_float),
        *((name, c_int32) for name in ("sh_coeffs", "sh_degree", "feature_dim", "width", "height")),
        *((name, c_int32) for name in ("features_move_geometry", "device")),
        ("stream", c_void_p),
    ]


class _Frame(Structure):
    _fields_ = [(name, c_void_p) for name in ("splats", "radii", "centres", "tile_begin", "list", "last")]


class _Images(Structure):
    _fields_ = [(name, c_void_p) for name in ("image", "features", "alpha", "depth")]


class _Gradients(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("image", "features", "alpha", "depth")),
        *((name, c_void_p) for name in ("out_image", "out_features", "out_alpha", "out_depth")),
        *((name, c_void_p) for name in ("moments", "feature_rows")),
        *((name, c_void_p) for name in ("means", "quats", "scales", "opacities", "colors", "means2d")),
        ("accumulate", c_int32),
    ]


class _Adam(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("param", "grad", "m", "v")),
        ("count", c_int64),
        ("lr", c_double),
        ("step", c_int64),
    ]


def _bind() -> ctypes.CDLL:
    """Declare argument types once; ctypes then converts Python numbers to the right width."""
    library = load("cuda")
    pointer, scene, frame, size = c_void_p, POINTER(_Scene), POINTER(_Frame), POINTER(c_int64)
    place = [c_int32, pointer]  # device and stream
    signatures = {
        "dgr_cuda_order_bytes": [c_int64, size],
        "dgr_cuda_order": [scene, frame, pointer, size],
        "dgr_cuda_lists_bytes": [scene, c_int64, size],
        "dgr_cuda_lists": [scene, frame, pointer, c_int64, pointer],
        "dgr_cuda_forward": [scene, frame, POINTER(_Images)],
        "dgr_cuda_backward_blend": [scene, frame, POINTER(_Gradients)],
        "dgr_cuda_backward_project": [scene, frame, POINTER(_Gradients)],
        "dgr_cuda_weights_count": [scene, frame, pointer, c_int64, c_float, pointer],
        "dgr_cuda_weights_fill": [scene, frame, pointer, c_int64, c_float, pointer, pointer, pointer],
        "dgr_cuda_rows": [pointer] * 4 + [c_int64] + [pointer] * 3 + place,
        "dgr_cuda_blend": [pointer] * 3 + [c_int64, pointer, c_int32, pointer, *place],
        "dgr_cuda_splat": [pointer] * 3 + [c_int64, pointer, c_int32, pointer, *place],
        "dgr_cuda_adam": [POINTER(_Adam), c_int32] + [c_double] * 3 + place,
        "dgr_cuda_ssim_parts": [c_int32, c_int32, size],
        "dgr_cuda_ssim": [pointer, pointer, c_int32, c_int32, pointer, pointer, pointer, *place],
        "dgr_cuda_ssim_backward": [pointer] * 3 + [c_int32, c_int32, pointer, pointer, *place],
        "dgr_cuda_constants": [pointer],
        "dgr_cuda_allow_matrix_units": [c_int32],
    }
    for name, arguments in signatures.items():
        getattr(library, name).argtypes = arguments
    for name in ("dgr_cuda_order_bytes", "dgr_cuda_lists_bytes", "dgr_cuda_ssim_parts", "dgr_cuda_constants"):
        getattr(library, name).restype = None
    library.dgr_cuda_allow_matrix_units.restype = None
    library.dgr_cuda_error.restype, library.dgr_cuda_error.argtypes = ctypes.c_char_p, [c_int32]
    return library


_lib = _bind()


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"the CUDA kernels failed: {_lib.dgr_cuda_error(status).decode()}")


def constants() -> list[float]:
    """Return the constants of the kernels: alpha min and max, least transmittance, low-pass, frustum margin."""
    values = torch.empty(5)
    _lib.dgr_cuda_constants(values.data_ptr())
    return values.tolist()


def allow_matrix_units(allow: bool) -> None:
    """Let backward sum with matrix units where the GPU has them (the default), or make it use shuffles everywhere."""
    _lib.dgr_cuda_allow_matrix_units(int(allow))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().contiguous()


def _row(tensor: Tensor | None, index: int) -> int | None:
    """Return the address of tensor[index]; slicing itself would cost microseconds each time."""
    return None if tensor is None else tensor.data_ptr() + index * tensor.stride(0) * tensor.element_size()


def _place(tensor: Tensor) -> tuple[int, int]:
    """Return (device index, address of torch's current stream there)."""
    index = tensor.device.index
    return index, torch._C._cuda_getCurrentRawStream(index)  # a tenth of the time of torch.cuda.current_stream


def _scene(inputs: tuple[Tensor | None, ...], camera: int, options: dict) -> _Scene:
    """Return the struct for one camera; `inputs` are dense and must outlive it."""
    means, quats, scales, opacities, colors, features, viewmats, Ks, backgrounds, means2d = inputs
    device, stream = _place(means)
    return _Scene(
        n=means.shape[0], means=_address(means), quats=_address(quats), scales=_address(scales),
        opacities=_address(opacities), colors=_address(colors), features=_address(features),
        viewmat=_row(viewmats, camera), intrinsics=_row(Ks, camera), background=_row(backgrounds, camera),
        means2d=_row(means2d, camera),
        near_z=options["near"], width=options["width"], height=options["height"],
        sh_coeffs=colors.shape[1] if colors is not None and colors.ndim == 3 else 0,
        sh_degree=-1 if options["sh_degree"] is None else options["sh_degree"],
        feature_dim=0 if features is None else features.shape[1],
        features_move_geometry=options["features_move_geometry"], device=device, stream=stream,
    )  # fmt: skip


@dataclass(frozen=True)
class _View:
    """One camera's projected Gaussians and tile lists: the structs, and the tensors whose memory they point to."""

    scene: _Scene
    frame: _Frame
    num_pairs: int
    memory: tuple[Tensor | None, ...]


def _build_view(scene: _Scene, like: Tensor, radii: int, centres: int | None, last: int | None) -> _View:
    """Project, sort and list the Gaussians of one camera; the last three arguments are addresses to write to."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=like.device)

    num = scene.n
    splats = empty(num, SPLAT_FLOATS, dtype=torch.float32)
    tiles = -(-scene.width // TILE) * -(-scene.height // TILE)
    tile_begin = empty(tiles + 1, dtype=torch.int64)
    frame = _Frame(_address(splats), radii, centres, _address(tile_begin), None, last)
    pairs, size = c_int64(0), c_int64(0)
    order = None
    if num:
        _lib.dgr_cuda_order_bytes(num, byref(size))
        order = empty(size.value, dtype=torch.uint8)
        _check(_lib.dgr_cuda_order(byref(scene), byref(frame), _address(order), byref(pairs)))
    if pairs.value >= 2**32:
        raise MemoryError(f"{pairs.value} (tile, Gaussian) pairs in one view; the Gaussians are far too large for it")
    entries = empty(pairs.value, dtype=torch.int32)  # the bits of uint32
    workspace = None
    if pairs.value:
        _lib.dgr_cuda_lists_bytes(byref(scene), pairs.value, byref(size))
        workspace = empty(size.value, dtype=torch.uint8)
    frame.list = _address(entries)
    _check(_lib.dgr_cuda_lists(byref(scene), byref(frame), _address(order), pairs.value, _address(workspace)))
    return _View(scene, frame, pairs.value, (splats, tile_begin, entries))


class _Rasterize(Function):
    """Differentiable render of all cameras; backward returns one gradient per input, in the order of forward."""

    @staticmethod
    def forward(ctx, options: dict, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        inputs = tuple(_dense(t) for t in tensors)
        means, n, dim = inputs[0], inputs[0].shape[0], 0 if inputs[5] is None else inputs[5].shape[1]
        shape = (inputs[6].shape[0], options["height"], options["width"])
        image, features = means.new_empty(*shape, 3), means.new_empty(*shape, dim)
        alpha, depth = means.new_empty(shape), means.new_empty(shape)
        radii = means.new_empty(shape[0], n, dtype=torch.int32)
        centres, last = means.new_empty(shape[0], n, 2), means.new_empty(shape, dtype=torch.int32)
        views = []
        for c in range(shape[0]):
            view = _build_view(_scene(inputs, c, options), means, _row(radii, c), _row(centres, c), _row(last, c))
            maps = _Images(_row(image, c), _row(features, c), _row(alpha, c), _row(depth, c))
            _check(_lib.dgr_cuda_forward(byref(view.scene), byref(view.frame), byref(maps)))
            views.append(view)
        options["num_pairs"] = sum(view.num_pairs for view in views)
        if any(ctx.needs_input_grad):
            ctx.options, ctx.views = options, views
            # the detached copies keep the memory that the kernels read; versions are checked on the originals
            ctx.dense, ctx.maps = inputs, tuple(t.detach() for t in (image, features, alpha, depth))
            ctx.memory = (radii.detach(), centres.detach(), last)
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
        moved = any(g is not None for g in (cotangents[0], cotangents[2], cotangents[3]))
        moved = moved or (cotangents[1] is not None and ctx.options["features_move_geometry"])
        moved = moved and any(wanted[i] for i in (0, 1, 2, 3, 4, 9))
        make = torch.empty_like if moved else torch.zeros_like
        outgoing = [make(t) if t is not None and w else None for t, w in zip(inputs, wanted)]
        if outgoing[5] is not None:
            outgoing[5] = torch.zeros_like(inputs[5])
        if outgoing[8] is not None:
            outgoing[8] = _background_gradient(cotangents[0], ctx.maps[2], inputs[8])
        num = inputs[0].shape[0]
        moments = inputs[0].new_empty(num, MOMENTS) if moved else None
        for c, view in enumerate(ctx.views if num else ()):
            scene, frame = view.scene, view.frame
            scene.stream = _place(inputs[0])[1]
            gradients = _Gradients(
                *(_row(t, c) for t in (*cotangents, *ctx.maps)), _address(None if moments is None else moments.zero_()),
                *(_address(outgoing[i]) for i in (5, 0, 1, 2, 3, 4)), _row(outgoing[9], c), accumulate=c > 0,
            )  # fmt: skip
            _check(_lib.dgr_cuda_backward_blend(byref(scene), byref(frame), byref(gradients)))
            if moved:
                _check(_lib.dgr_cuda_backward_project(byref(scene), byref(frame), byref(gradients)))
        return (None, *outgoing)


def _background_gradient(cotangent: Tensor | None, alpha: Tensor, like: Tensor) -> Tensor:
    if cotangent is None:
        return torch.zeros_like(like)
    return torch.einsum("chwk,chw->ck", cotangent, 1 - alpha)


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
    radii = means.new_empty(means.shape[0], dtype=torch.int32)
    view = _build_view(scene, inputs[0], _address(radii), None, None)
    request = (byref(scene), byref(view.frame), _address(pixels), pixels.shape[0], min_weight)
    offsets = torch.zeros(pixels.shape[0] + 1, dtype=torch.int64, device=means.device)
    _check(_lib.dgr_cuda_weights_count(*request, _address(offsets[1:])))
    torch.cumsum(offsets, 0, out=offsets)
    total = int(offsets[-1])
    ids = torch.empty(total, dtype=torch.int32, device=means.device)
    weights = means.new_empty(total)
    _check(_lib.dgr_cuda_weights_fill(*request, _address(offsets), _address(ids), _address(weights)))
    del view  # the lists must stay until the kernels that read them are queued
    return PixelWeights(offsets, ids, weights)


def rows(weights: PixelWeights, index: Tensor) -> PixelWeights:
    """Return the chosen rows in the given order."""
    old_offsets, ids, factors = (t.contiguous() for t in weights)
    index = index.contiguous()
    offsets, total = _compiled.row_offsets(old_offsets, index)
    new_ids, new_weights = ids.new_empty(total), factors.new_empty(total)
    status = _lib.dgr_cuda_rows(
        _address(old_offsets), _address(ids), _address(factors), _address(index), index.numel(), _address(offsets),
        _address(new_ids), _address(new_weights), *_place(factors),
    )  # fmt: skip
    _check(status)
    return PixelWeights(offsets, new_ids, new_weights)


def _splat(weights: PixelWeights, values: Tensor, num_gaussians: int) -> Tensor:
    offsets, ids, factors = (t.contiguous() for t in weights)
    values = values.contiguous()
    out = values.new_zeros(num_gaussians, values.shape[1])
    status = _lib.dgr_cuda_splat(
        _address(offsets), _address(ids), _address(factors), weights.num_rows, _address(values), values.shape[1],
        _address(out), *_place(values),
    )  # fmt: skip
    _check(status)
    return out


class _Blend(Function):
    @staticmethod
    def forward(ctx, weights: PixelWeights, features: Tensor) -> Tensor:
        offsets, ids, factors = (t.contiguous() for t in weights)
        features = features.detach().contiguous()
        ctx.weights, ctx.num_gaussians = weights, features.shape[0]
        out = features.new_empty(weights.num_rows, features.shape[1])
        status = _lib.dgr_cuda_blend(
            _address(offsets), _address(ids), _address(factors), weights.num_rows, _address(features),
            features.shape[1], _address(out), *_place(features),
        )  # fmt: skip
        _check(status)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming: Tensor) -> tuple[None, Tensor]:
        return None, _splat(ctx.weights, incoming, ctx.num_gaussians)


def blend(weights: PixelWeights, features: Tensor) -> Tensor:
    """Return the weighted sums of features, [P, D]; differentiable in the features."""
    return _Blend.apply(weights, features)


def splat(weights: PixelWeights, values: Tensor, num_gaussians: int) -> Tensor:
    """Return per-Gaussian weighted sums of pixel values, [N, D]; equal up to the order of float sums between runs."""
    return _splat(weights, values, num_gaussians)


class _Ssim(Function):
    @staticmethod
    def forward(ctx, image: Tensor, target: Tensor) -> Tensor:
        image, target = image.detach().contiguous(), target.contiguous()
        height, width = image.shape[:2]
        size = c_int64()
        _lib.dgr_cuda_ssim_parts(width, height, byref(size))
        maps = image.new_empty(3, *image.shape) if ctx.needs_input_grad[0] else None
        parts, out = image.new_empty(size.value), image.new_empty(())
        addresses = (_address(maps), _address(parts), _address(out))
        _check(_lib.dgr_cuda_ssim(_address(image), _address(target), width, height, *addresses, *_place(image)))
        ctx.dense = (image, target, maps)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming: Tensor) -> tuple[Tensor, None]:
        image, target, maps = ctx.dense
        height, width = image.shape[:2]
        incoming, grad = incoming.contiguous(), torch.empty_like(image)
        addresses = (_address(image), _address(target), _address(maps))
        status = _lib.dgr_cuda_ssim_backward(
            *addresses, width, height, _address(incoming), _address(grad), *_place(image)
        )
        _check(status)
        return grad, None


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Return mean SSIM of two images [H, W, 3], a scalar; differentiable in the image."""
    return _Ssim.apply(image, target)


def adam_step(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor,
    *, lr: float, beta1: float, beta2: float, eps: float, step: int,
) -> None:  # fmt: skip
    """Update a parameter and its moments in place by one Adam step with bias correction."""
    adam_steps([(param, grad, exp_avg, exp_avg_sq)], lrs=[lr], beta1=beta1, beta2=beta2, eps=eps, steps=[step])


def adam_steps(
    tensors: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    *, lrs: Sequence[float], beta1: float, beta2: float, eps: float, steps: Sequence[int],
) -> None:  # fmt: skip
    """Update several parameters (param, grad, exp_avg, exp_avg_sq) in one launch."""
    dense = [(param, grad.contiguous(), first, second) for param, grad, first, second in tensors]
    structs = (_Adam * len(dense))(
        *((*(t.data_ptr() for t in four), four[0].numel(), lr, step) for four, lr, step in zip(dense, lrs, steps))
    )
    _check(_lib.dgr_cuda_adam(structs, len(dense), beta1, beta2, eps, *_place(dense[0][0])))
    torch.autograd.graph.increment_version([t for param, _, *moments in tensors for t in (param, *moments)])
