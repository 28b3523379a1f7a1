"""Losses of lifting methods over the pixels of a view, and assignment: autograd around kernels, no host waits."""

from __future__ import annotations

from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..types import Association
from .binding import PLACE, address, bind, check, place


class _Pixels(Structure):
    _fields_ = [
        ("features", c_void_p), ("slot", c_void_p), ("count", c_int64),
        *((name, c_int32) for name in ("dim", "segments", "device")), ("stream", c_void_p),
    ]  # fmt: skip


class _Contrast(Structure):
    _fields_ = [
        ("temperature", c_float),
        *((name, c_int32) for name in ("min_pixels", "detach_norm", "unit_centres", "mean_over_pixels")),
    ]


class _Codebook(Structure):
    _fields_ = [
        ("codes", c_void_p), ("count", c_int32), ("temperature", c_float),
        ("area_aware", c_int32), ("unit_codes", c_int32),
    ]  # fmt: skip


_PX, _HOW, _BOOK, _SIZE = POINTER(_Pixels), POINTER(_Contrast), POINTER(_Codebook), POINTER(c_int64)
_lib = bind(
    {
        "dgr_cuda_segment_bytes": [_PX, _SIZE],
        "dgr_cuda_contrast": [_PX, _HOW] + [c_void_p] * 3,
        "dgr_cuda_contrast_backward": [_PX, _HOW] + [c_void_p] * 4,
        "dgr_cuda_uncertainty": [_PX, _HOW, c_void_p, c_void_p],
        "dgr_cuda_association_bytes": [_PX, _BOOK, _SIZE],
        "dgr_cuda_association": [_PX, _BOOK] + [c_void_p] * 4,
        "dgr_cuda_terms_bytes": [_PX, _BOOK, _SIZE],
        "dgr_cuda_terms": [_PX, _BOOK] + [c_void_p] * 6,
        "dgr_cuda_terms_backward": [_PX, _BOOK] + [c_void_p] * 6,
        "dgr_cuda_assign_bytes": [c_int32, c_int32, c_int32, _SIZE],
        "dgr_cuda_assign": [c_void_p, c_void_p, c_int32, c_int32, c_void_p, c_void_p, *PLACE],
    },
    silent=("dgr_cuda_segment_bytes", "dgr_cuda_association_bytes", "dgr_cuda_terms_bytes", "dgr_cuda_assign_bytes"),
)


def _pixels(features: Tensor, slot: Tensor, num_segments: int) -> _Pixels:
    """Return the struct for contiguous features and slots, which must outlive it."""
    return _Pixels(address(features), address(slot), *features.shape, num_segments, *place(features))


def _workspace(like: Tensor, size: c_int64) -> Tensor:
    return torch.empty(size.value, dtype=torch.uint8, device=like.device)


class _ContrastiveLoss(Function):
    @staticmethod
    def forward(ctx, features: Tensor, slot: Tensor, num_segments: int, how: _Contrast) -> Tensor:
        features, slot = features.detach().contiguous(), slot.contiguous()
        px, size = _pixels(features, slot, num_segments), c_int64()
        _lib.dgr_cuda_segment_bytes(byref(px), byref(size))
        workspace, loss = _workspace(features, size), features.new_empty(())
        gradient = torch.empty_like(features) if ctx.needs_input_grad[0] else None
        memory = (address(workspace), address(loss), address(gradient))
        check(_lib.dgr_cuda_contrast(byref(px), byref(how), *memory))
        ctx.save_for_backward(features, slot)
        ctx.structs, ctx.memory = (px, how), (workspace, gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        features, _ = ctx.saved_tensors  # raises if one was changed in place since forward
        px, how = ctx.structs
        px.stream = place(features)[1]
        workspace, gradient = ctx.memory
        upstream, out = upstream.contiguous(), torch.empty_like(features)
        memory = (address(workspace), address(gradient), address(upstream), address(out))
        check(_lib.dgr_cuda_contrast_backward(byref(px), byref(how), *memory))
        return out, None, None, None


def contrastive_loss(
    features: Tensor, slot: Tensor, num_segments: int,
    *, temperature: float | None, min_pixels: int, detach_norm: bool, unit_centres: bool, mean_over_pixels: bool,
) -> Tensor:  # fmt: skip
    """Return Eq. 1; arguments as in `lifting.contrastive_loss`, already checked."""
    how = _Contrast(temperature or 0.0, min_pixels, detach_norm, unit_centres, mean_over_pixels)
    return _ContrastiveLoss.apply(features, slot, num_segments, how)


def uncertainty(features: Tensor, slot: Tensor, num_segments: int, *, temperature: float) -> Tensor:
    """Return Eq. 7; arguments as in `lifting.uncertainty`, already checked."""
    features, slot = features.detach().contiguous(), slot.contiguous()
    px, size = _pixels(features, slot, num_segments), c_int64()
    _lib.dgr_cuda_segment_bytes(byref(px), byref(size))
    workspace, out = _workspace(features, size), features.new_empty(features.shape[0])
    check(_lib.dgr_cuda_uncertainty(byref(px), byref(_Contrast(temperature)), address(workspace), address(out)))
    return out


def associate(
    features: Tensor, codebook: Tensor, slot: Tensor, num_segments: int, *, temperature: float | None, area_aware: bool
) -> Association:
    """Return Eq. 2 with Eq. 3 or 5; arguments as in `lifting.associate`, already checked."""
    features, slot, codes = features.detach().contiguous(), slot.contiguous(), codebook.detach().contiguous()
    px = _pixels(features, slot, num_segments)
    book = _Codebook(address(codes), codes.shape[0], temperature or 0.0, area_aware)
    size = c_int64()
    _lib.dgr_cuda_association_bytes(byref(px), byref(book), byref(size))
    workspace, scores = _workspace(features, size), features.new_empty(num_segments, codes.shape[0])
    log_normaliser = features.new_empty(features.shape[0])
    best = torch.empty_like(slot)
    memory = (address(workspace), address(scores), address(log_normaliser), address(best))
    check(_lib.dgr_cuda_association(byref(px), byref(book), *memory))
    return Association(scores, log_normaliser, best)


def assign(scores: Tensor, floors: Tensor | None) -> Tensor:
    """Return the code of each segment; arguments as in `lifting.assign`, already checked."""
    scores, floors = scores.contiguous(), None if floors is None else floors.contiguous()
    segments, codes = scores.shape
    size = c_int64()
    _lib.dgr_cuda_assign_bytes(segments, codes, floors is not None, byref(size))
    workspace, result = _workspace(scores, size), torch.empty(segments, dtype=torch.int64, device=scores.device)
    memory = (address(workspace), address(result))
    check(_lib.dgr_cuda_assign(address(scores), address(floors), segments, codes, *memory, *place(scores)))
    return result


class _Terms(Function):
    @staticmethod
    def forward(
        ctx, codebook: Tensor, features: Tensor, slot: Tensor, codes: Tensor, log_normaliser: Tensor, best: Tensor,
        options: tuple[float, bool],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        tensors = (features, slot, codebook, codes, log_normaliser, best)
        features, slot, book_rows, codes, log_normaliser, best = (t.detach().contiguous() for t in tensors)
        px = _pixels(features, slot, codes.shape[0])
        book = _Codebook(address(book_rows), book_rows.shape[0], options[0], True, options[1])
        size = c_int64()
        _lib.dgr_cuda_terms_bytes(byref(px), byref(book), byref(size))
        workspace = _workspace(features, size)
        class_term, concentration = features.new_empty(()), features.new_empty(())
        memory = map(address, (codes, log_normaliser, best, workspace, class_term, concentration))
        check(_lib.dgr_cuda_terms(byref(px), byref(book), *memory))
        ctx.save_for_backward(features, slot, book_rows, codes, log_normaliser)
        ctx.structs, ctx.workspace = (px, book), workspace
        ctx.set_materialize_grads(False)
        return class_term, concentration

    @staticmethod
    @once_differentiable
    def backward(ctx, class_upstream: Tensor | None, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        features, _, book_rows, codes, log_normaliser = ctx.saved_tensors
        px, book = ctx.structs
        px.stream = place(features)[1]
        out = torch.empty_like(book_rows)
        upstreams = (None if t is None else t.contiguous() for t in (class_upstream, upstream))
        memory = map(address, (codes, log_normaliser, ctx.workspace, *upstreams, out))
        check(_lib.dgr_cuda_terms_backward(byref(px), byref(book), *memory))
        return out, None, None, None, None, None, None


def codebook_terms(
    features: Tensor, codebook: Tensor, association: Association, codes: Tensor, slot: Tensor,
    *, temperature: float | None, unit_codes: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return Eq. 4 and Eq. 6; arguments as in `lifting.codebook_terms`, already checked."""
    options = (temperature or 0.0, unit_codes)
    return _Terms.apply(codebook, features.detach(), slot, codes, association.log_normaliser, association.best, options)
