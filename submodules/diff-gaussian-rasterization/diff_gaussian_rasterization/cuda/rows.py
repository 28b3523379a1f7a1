"""Sparse blending of given weights, and its transpose."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_void_p

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..types import PixelWeights
from .library import PLACE, address, bind, check, place

_ROWS = [c_void_p] * 4 + [c_int64, c_int64, c_void_p, c_int32, c_void_p, *PLACE]
_lib = bind({"dgr_cuda_blend": _ROWS, "dgr_cuda_splat": _ROWS})


def _csr(weights: PixelWeights, rows: Tensor | None) -> tuple[tuple, tuple[Tensor, ...]]:
    """Return the arguments that describe the chosen rows, and the tensors that must outlive the call."""
    memory = tuple(t.contiguous() for t in (*weights, *(() if rows is None else (rows,))))
    count = weights.num_rows if rows is None else rows.numel()
    addresses = [*(address(t) for t in memory), None][:4]
    return (*addresses, count, weights.num_rows), memory


class _Blend(Function):
    @staticmethod
    def forward(ctx, weights: PixelWeights, features: Tensor, rows: Tensor | None) -> Tensor:
        csr, memory = _csr(weights, rows)
        features = features.detach().contiguous()
        ctx.arguments, ctx.num_gaussians = (weights, rows), features.shape[0]
        out = features.new_empty(csr[4], features.shape[1])
        check(_lib.dgr_cuda_blend(*csr, address(features), features.shape[1], address(out), *place(features)))
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
    values = values.contiguous()
    out = values.new_zeros(num_gaussians, values.shape[1])
    check(_lib.dgr_cuda_splat(*csr, address(values), values.shape[1], address(out), *place(values)))
    del memory
    return out
