"""Sparse blending of given weights, and its transpose."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_uint64, c_void_p

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..types import PixelWeights, Sample
from .binding import PLACE, address, bind, check, place

_ROWS = [c_void_p] * 4 + [c_int64, c_int64, c_void_p, c_void_p, c_int32, c_void_p, *PLACE]
_DRAW = [c_void_p] * 4 + [c_int64, c_int64, c_uint64] + [c_void_p] * 3 + PLACE
_lib = bind({"dgr_cuda_blend": _ROWS, "dgr_cuda_splat": _ROWS, "dgr_cuda_draw": _DRAW})


def _csr(weights: PixelWeights, rows: Tensor | None) -> tuple[tuple, tuple[Tensor, ...]]:
    """Return the arguments that describe the chosen rows, and the tensors that must outlive the call."""
    memory = tuple(t.contiguous() for t in (*weights, *(() if rows is None else (rows,))))
    count = weights.num_rows if rows is None else rows.numel()
    addresses = [*(address(t) for t in memory), None][:4]
    return (*addresses, count, weights.num_rows, None), memory


class _Blend(Function):
    @staticmethod
    def forward(ctx, weights: PixelWeights, features: Tensor, rows: Tensor | None) -> Tensor:
        csr, memory = _csr(weights, rows)
        ctx.arguments, ctx.num_gaussians = (weights, rows), features.shape[0]
        out = _blend_rows(csr, features)
        del memory
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming: Tensor) -> tuple[None, Tensor, None]:
        weights, rows = ctx.arguments
        return None, splat(weights, incoming, ctx.num_gaussians, rows), None


def blend(weights: PixelWeights, features: Tensor, rows: Tensor | None) -> Tensor:
    """Return the weighted sums of features, [P, D], differentiable in them; NaN for a row that does not exist."""
    return _Blend.apply(weights, features, rows)


def splat(weights: PixelWeights, values: Tensor, num_gaussians: int, rows: Tensor | None) -> Tensor:
    """Return per-Gaussian weighted sums of pixel values, [N, D]; equal up to the order of float sums between runs."""
    csr, memory = _csr(weights, rows)
    out = _splat_rows(csr, values, num_gaussians)
    del memory
    return out


def _blend_rows(csr: tuple, features: Tensor) -> Tensor:
    features = features.detach().contiguous()
    out = features.new_empty(csr[4], features.shape[1])
    check(_lib.dgr_cuda_blend(*csr, address(features), features.shape[1], address(out), *place(features)))
    return out


def _splat_rows(csr: tuple, values: Tensor, num_gaussians: int) -> Tensor:
    values = values.contiguous()
    out = values.new_zeros(num_gaussians, values.shape[1])
    check(_lib.dgr_cuda_splat(*csr, address(values), values.shape[1], address(out), *place(values)))
    return out


def draw(weights: PixelWeights, slot: Tensor, sample: Sample, *, stream: int) -> None:
    """Draw a sample anew; arguments as in `lifting.draw`, already checked."""
    offsets, ids, factors = weights
    check(
        _lib.dgr_cuda_draw(
            address(offsets), address(ids), address(factors), address(slot), sample.rows.numel(), weights.num_rows,
            stream, *(address(t) for t in sample), *place(slot),
        )
    )  # fmt: skip


class _BlendSample(Function):
    @staticmethod
    def forward(ctx, sample: Sample, features: Tensor) -> Tensor:
        ctx.csr = (None, None, None, address(sample.rows), sample.rows.numel(), 0, address(sample.source))
        ctx.sample, ctx.num_gaussians = sample, features.shape[0]
        return _blend_rows(ctx.csr, features)

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming: Tensor) -> tuple[None, Tensor]:
        return None, _splat_rows(ctx.csr, incoming, ctx.num_gaussians)


def blend_sample(sample: Sample, features: Tensor) -> Tensor:
    """Return features at the pixels of a sample, [P, D]; arguments as in `lifting.blend_sample`, already checked."""
    return _BlendSample.apply(sample, features)
