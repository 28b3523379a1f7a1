"""Rendering and its gradient: autograd around the kernels. The host waits once per camera, for the number of pairs."""

from __future__ import annotations

from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .. import _compiled
from ..types import PixelWeights, RasterOutput
from .binding import Frame, Memory, Scene, address, bind, check, dense, place, row

TILE = 16  # pixels, kTile of csrc/cuda/splat.cuh
SPLAT_FLOATS = 12
MOMENTS = 16


class Images(Structure):
    """The maps of one camera."""

    _fields_ = [(name, c_void_p) for name in ("image", "features", "alpha", "depth")]


class Gradients(Structure):
    """What comes in and goes out of backward."""

    _fields_ = [
        *((name, c_void_p) for name in ("image", "features", "alpha", "depth")),
        *((name, c_void_p) for name in ("out_image", "out_features", "out_alpha", "out_depth")),
        *((name, c_void_p) for name in ("moments", "feature_rows")),
        *((name, c_void_p) for name in ("means", "quats", "scales", "opacities", "colors", "means2d")),
        ("accumulate", c_int32),
    ]


_SCENE, _FRAME, _SIZE = POINTER(Scene), POINTER(Frame), POINTER(c_int64)
_lib = bind(
    {
        "dgr_cuda_order_bytes": [c_int64, _SIZE],
        "dgr_cuda_order": [_SCENE, _FRAME, c_void_p, c_int64, c_void_p, _SIZE],
        "dgr_cuda_lists_bytes": [_SCENE, c_int64, _SIZE],
        "dgr_cuda_lists": [_SCENE, _FRAME, c_void_p, c_int64, c_void_p],
        "dgr_cuda_forward": [_SCENE, _FRAME, POINTER(Images)],
        "dgr_cuda_backward_blend": [_SCENE, _FRAME, POINTER(Gradients)],
        "dgr_cuda_backward_project": [_SCENE, _FRAME, POINTER(Gradients)],
        "dgr_cuda_weights_count": [_SCENE, _FRAME, c_void_p, c_int64, c_float, c_void_p],
        "dgr_cuda_weights_fill": [_SCENE, _FRAME, c_void_p, c_int64, c_float, c_void_p, c_void_p, c_void_p],
        "dgr_cuda_constants": [c_void_p],
        "dgr_cuda_chunk_sizes": [c_void_p],
        "dgr_cuda_allow_matrix_units": [c_int32],
    },
    silent=(
        "dgr_cuda_order_bytes", "dgr_cuda_lists_bytes", "dgr_cuda_constants", "dgr_cuda_chunk_sizes",
        "dgr_cuda_allow_matrix_units",
    ),
)  # fmt: skip
_sizes = (c_int32 * 3)()
_lib.dgr_cuda_chunk_sizes(_sizes)
CHUNK, STATE_FLOATS, PARTIAL_FLOATS = _sizes  # list entries of a chunk; floats of a tile kept for each
MOST_EXPECTATIONS = 64
_expected_pairs: dict[tuple[int, int, int], int] = {}
"""Pairs to have room for beforehand, by number of Gaussians, width and height: a fifth more than the last such view."""


def render(scene: Scene, frame: Frame, images: Images) -> None:
    """Fill the maps of one camera."""
    check(_lib.dgr_cuda_forward(byref(scene), byref(frame), byref(images)))


def blend_backward(scene: Scene, frame: Frame, gradients: Gradients) -> None:
    """Add what the maps ask for to the moments and the feature rows."""
    check(_lib.dgr_cuda_backward_blend(byref(scene), byref(frame), byref(gradients)))


def constants() -> list[float]:
    """Return the constants of the kernels: alpha min and max, least transmittance, low-pass, frustum margin."""
    values = torch.empty(5)
    _lib.dgr_cuda_constants(values.data_ptr())
    return values.tolist()


def allow_matrix_units(allow: bool) -> None:
    """Let backward sum with matrix units where the GPU has them (the default), or make it use shuffles everywhere."""
    _lib.dgr_cuda_allow_matrix_units(int(allow))


def _scene(inputs: tuple[Tensor | None, ...], camera: int, options: dict) -> Scene:
    """Return the struct for one camera; `inputs` are dense and must outlive it."""
    means, quats, scales, opacities, colors, features, viewmats, Ks, backgrounds, means2d = inputs
    device, stream = place(means)
    return Scene(
        n=means.shape[0], means=address(means), quats=address(quats), scales=address(scales),
        opacities=address(opacities), colors=address(colors), features=address(features),
        viewmat=row(viewmats, camera), intrinsics=row(Ks, camera), background=row(backgrounds, camera),
        means2d=row(means2d, camera),
        near_z=options["near"], width=options["width"], height=options["height"],
        sh_coeffs=colors.shape[1] if colors is not None and colors.ndim == 3 else 0,
        sh_degree=-1 if options["sh_degree"] is None else options["sh_degree"],
        feature_dim=0 if features is None else features.shape[1],
        features_move_geometry=options["features_move_geometry"], device=device, stream=stream,
    )  # fmt: skip


@dataclass(frozen=True)
class _View:
    """One camera's projected Gaussians and tile lists: the structs, and the memory they point to."""

    scene: Scene
    frame: Frame
    num_pairs: int
    memory: Memory


def build_frame(scene: Scene, frame: Frame, memory: Memory, *, for_backward: bool) -> int:
    """Project, sort and list the Gaussians of one camera; fill in the rest of `frame` and return the number of pairs.

    Args:
        scene: The Gaussians and the camera.
        frame: Where radii, and what else is wanted, go.
        memory: Serves the rest.
        for_backward: Also prepare what backward needs of forward.
    Raises:
        MemoryError: More pairs than 32 bits can number.
    """
    tiles = -(-scene.width // TILE) * -(-scene.height // TILE)
    frame.splats = memory.take("splats", scene.n * SPLAT_FLOATS * 4)
    frame.tile_begin = memory.take("tile_begin", (tiles + 1) * 8)
    pairs, order, lists = c_int64(0), None, None
    if memory.num_pairs >= 0:
        lists = _make_room(scene, frame, memory, tiles, for_backward=for_backward)
    if scene.n:
        size = c_int64()
        _lib.dgr_cuda_order_bytes(scene.n, byref(size))
        order = memory.take("order", size.value)
        arguments = (byref(scene), byref(frame), order, memory.num_pairs, lists)
        check(_lib.dgr_cuda_order(*arguments, byref(pairs)))
    if pairs.value >= 2**32:
        raise MemoryError(f"{pairs.value} (tile, Gaussian) pairs in one view; the Gaussians are far too large for it")
    if pairs.value > memory.num_pairs or not scene.n:
        memory.num_pairs = int(pairs.value * memory.slack)
        lists = _make_room(scene, frame, memory, tiles, for_backward=for_backward)
        check(_lib.dgr_cuda_lists(byref(scene), byref(frame), order, pairs.value, lists))
    return pairs.value


def _make_room(scene: Scene, frame: Frame, memory: Memory, tiles: int, *, for_backward: bool) -> int | None:
    """Give the frame lists for `memory.num_pairs` pairs; return the address of the workspace that fills them."""
    pairs, size = memory.num_pairs, c_int64()
    frame.list = memory.take("list", pairs * 4)
    if for_backward:
        frame.chunks = pairs // CHUNK + tiles
        frame.chunk_begin = memory.take("chunk_begin", (tiles + 1) * 4)
        frame.chunk_tile = memory.take("chunk_tile", frame.chunks * 4)
        frame.states = memory.take("states", pairs // CHUNK * STATE_FLOATS * 4)
        if scene.feature_dim == 0:
            frame.partials = memory.take("partials", 2 * (pairs // CHUNK) * PARTIAL_FLOATS * 4)
    if pairs == 0:
        return None
    _lib.dgr_cuda_lists_bytes(byref(scene), pairs, byref(size))
    return memory.take("lists", size.value)


def _build_view(
    scene: Scene, like: Tensor, radii: int, centres: int | None, last: int | None, *, for_backward: bool
) -> _View:
    """Return one camera's view; radii, centres and last are addresses to write to."""
    frame, memory = Frame(radii=radii, centres=centres, last=last), Memory(like.device)
    alike = (scene.n, scene.width, scene.height)
    memory.num_pairs = _expected_pairs.get(alike, -1)
    pairs = build_frame(scene, frame, memory, for_backward=for_backward)
    if len(_expected_pairs) > MOST_EXPECTATIONS:
        _expected_pairs.clear()
    _expected_pairs[alike] = int(1.2 * pairs)
    for name in ("order", "lists"):  # only needed until here, and torch frees in stream order
        memory.parts.pop(name, None)
    return _View(scene, frame, pairs, memory)


class _Rasterize(Function):
    """Differentiable render of all cameras; backward returns one gradient per input, in the order of forward."""

    @staticmethod
    def forward(ctx, options: dict, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        inputs = tuple(dense(t) for t in tensors)
        means, n, dim = inputs[0], inputs[0].shape[0], 0 if inputs[5] is None else inputs[5].shape[1]
        shape = (inputs[6].shape[0], options["height"], options["width"])
        image, features = means.new_empty(*shape, 3), means.new_empty(*shape, dim)
        alpha, depth = means.new_empty(shape), means.new_empty(shape)
        radii = means.new_empty(shape[0], n, dtype=torch.int32)
        centres, last = means.new_empty(shape[0], n, 2), means.new_empty(shape, dtype=torch.int32)
        views = []
        for c in range(shape[0]):
            targets = (row(radii, c), row(centres, c), row(last, c))
            view = _build_view(_scene(inputs, c, options), means, *targets, for_backward=any(ctx.needs_input_grad))
            maps = Images(row(image, c), row(features, c), row(alpha, c), row(depth, c))
            render(view.scene, view.frame, maps)
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
        cotangents = tuple(dense(g) for g in incoming[:4])
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
            scene.stream = place(inputs[0])[1]
            gradients = Gradients(
                *(row(t, c) for t in (*cotangents, *ctx.maps)),
                address(None if moments is None else moments.zero_()),
                *(address(outgoing[i]) for i in (5, 0, 1, 2, 3, 4)), row(outgoing[9], c), accumulate=c > 0,
            )  # fmt: skip
            blend_backward(scene, frame, gradients)
            if moved:
                check(_lib.dgr_cuda_backward_project(byref(scene), byref(frame), byref(gradients)))
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
    inputs = tuple(dense(t) for t in (means, quats, scales, opacities, None, None, viewmat[None], K[None], None, None))
    scene, pixels = _scene(inputs, 0, options), pixels.contiguous()
    radii = means.new_empty(means.shape[0], dtype=torch.int32)
    view = _build_view(scene, inputs[0], address(radii), None, None, for_backward=False)
    request = (byref(scene), byref(view.frame), address(pixels), pixels.shape[0], min_weight)
    offsets = torch.zeros(pixels.shape[0] + 1, dtype=torch.int64, device=means.device)
    check(_lib.dgr_cuda_weights_count(*request, address(offsets[1:])))
    torch.cumsum(offsets, 0, out=offsets)
    total = int(offsets[-1])
    ids = torch.empty(total, dtype=torch.int32, device=means.device)
    weights = means.new_empty(total)
    check(_lib.dgr_cuda_weights_fill(*request, address(offsets), address(ids), address(weights)))
    del view  # the lists must stay until the kernels that read them are queued
    return PixelWeights(offsets, ids, weights)
