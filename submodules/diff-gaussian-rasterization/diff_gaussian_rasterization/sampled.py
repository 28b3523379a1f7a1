"""Blending at pixels that a kernel draws anew from stored weights, so that a captured CUDA graph serves every step."""

from __future__ import annotations

from ctypes import c_int64, c_uint64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .cuda.rasterize import blend_rows, scatter_rows
from .native import CUDA, PLACE, address, choose, place
from .types import PixelWeights

CUDA.declare({"dgr_cuda_draw": [c_void_p] * 4 + [c_int64, c_int64, c_uint64] + [c_void_p] * 3 + PLACE})


class Sample(NamedTuple):
    """Pixels that were drawn from stored weights. Its tensors are overwritten by every draw and never replaced."""

    rows: Tensor  # row of the weights of each pixel, int64 [P]
    slot: Tensor  # segment of each pixel, int32 [P]
    source: Tensor  # addresses of the parts of the weights, and their number of rows, int64 [4]

    @staticmethod
    def empty(count: int, device: torch.device) -> Sample:
        """Return room for `count` pixels."""
        sizes = ((count, torch.int64), (count, torch.int32), (4, torch.int64))
        return Sample(*(torch.empty(size, dtype=dtype, device=device) for size, dtype in sizes))


def draw(weights: PixelWeights, slot: Tensor, sample: Sample, *, stream: int) -> None:
    """Overwrite a sample by one random row of each of P equal parts of the rows of `weights`, in order; on a GPU only.

    Every row is as likely as in independent draws; the numbers depend on `stream` alone.

    Args:
        weights: What is to be blended; it must outlive the use of the sample.
        slot: Segment of each row, int32 [num_rows].
        sample: Of P pixels, P at most num_rows.
        stream: Number of the random stream, 0 to 2^64 - 1.
    Raises:
        ValueError: Shapes, dtypes or sizes do not fit.
    """
    if slot.dtype != torch.int32 or slot.shape != (weights.num_rows,) or not slot.is_contiguous():
        raise ValueError(f"slot must be int32 [{weights.num_rows}], got {slot.dtype} {list(slot.shape)}")
    if not 0 < sample.rows.numel() <= weights.num_rows:
        raise ValueError(f"cannot draw {sample.rows.numel()} of {weights.num_rows} rows")
    parts = (weights.offsets, weights.gaussian_ids, weights.weights)
    if not all(t.is_contiguous() for t in parts):
        raise ValueError("the parts of the weights must be contiguous")
    numbers = (sample.rows.numel(), weights.num_rows, stream)
    CUDA.dgr_cuda_draw(*map(address, (*parts, slot)), *numbers, *map(address, sample), *place(slot))


def blend_sample(sample: Sample, features: Tensor) -> Tensor:
    """Return features composited over zero at the pixels that `draw` chose last, [P, D]; on a GPU only.

    Differs from `blend` in that the weights are looked up when the kernel runs.

    Args:
        sample: Drawn from weights that mention no Gaussian beyond `features`.
        features: Per-Gaussian values, float32 [N, D].
    Raises:
        ValueError: The features are not float32 [N, D] on a GPU.
    Gradient: to features.
    """
    if features.ndim != 2:
        raise ValueError(f"features must be [N, D], got {list(features.shape)}")
    choose("cuda", features)
    return _BlendSample.apply(sample, features)


def scatter_sample(sample: Sample, values: Tensor, out: Tensor) -> None:
    """Add to `out`, [N, D], what each Gaussian collects from values [P, D] at the pixels that `draw` chose last.

    The transpose of `blend_sample`; on a GPU only.
    """
    scatter_rows(_rows_of(sample), values, len(out), out)


def _rows_of(sample: Sample) -> tuple[Any, ...]:
    return None, None, None, address(sample.rows), sample.rows.numel(), 0, address(sample.source)


class _BlendSample(Function):
    @staticmethod
    def forward(ctx: Any, sample: Sample, features: Tensor) -> Tensor:
        rows = _rows_of(sample)
        ctx.state = (rows, sample, features.shape[0])
        return blend_rows(rows, features.detach().contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[None, Tensor]:
        rows, _, num_gaussians = ctx.state
        return None, scatter_rows(rows, incoming, num_gaussians)
