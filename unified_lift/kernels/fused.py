"""What the fused operations on the pixels of a view share: when they run, and the structs they take.

The kernels are part of the rasterizer's CUDA library, csrc/cuda/{contrast,codebook,assign}.cu, whose dgr_cuda.h the
structs mirror field by field. Nothing here makes the host wait.
"""

from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p

import torch
from diff_gaussian_rasterization.native import CUDA, address, place, requested
from torch import Tensor

MAX_DIM = 64  # kMaxDim of csrc/cuda/vector.cuh


class Pixels(Structure):
    """Rendered features of the pixels of one view, and the segment of each."""

    _fields_ = [
        *((name, c_void_p) for name in ("features", "slot")), ("count", c_int64),
        *((name, c_int32) for name in ("dim", "segments", "device")), ("stream", c_void_p),
    ]  # fmt: skip


class Contrast(Structure):
    """How Eq. 1 is meant."""

    _fields_ = [
        ("temperature", c_float),
        *((name, c_int32) for name in ("min_pixels", "detach_norm", "unit_centres", "mean_over_pixels")),
    ]


PIXELS, SIZE = POINTER(Pixels), POINTER(c_int64)  # for declarations


def runs_on(tensor: Tensor, *, max_width: int | None = MAX_DIM) -> bool:
    """Return whether the kernels take features [P, D], or scores [S, L] of any width (`max_width` None).

    They take float32 on a GPU for which they were built, not empty, not too wide. DGR_IMPLEMENTATION=reference makes
    this False everywhere, for debugging.
    """
    if tensor.device.type != CUDA.device_type or tensor.dtype != torch.float32 or tensor.numel() == 0:
        return False
    narrow = max_width is None or tensor.shape[-1] <= max_width
    return narrow and requested("auto") in ("auto", "cuda") and CUDA.problem() is None


def pixels_of(features: Tensor, slot: Tensor, num_segments: int) -> Pixels:
    """Return the struct for contiguous features and int32 slots of one device, which must outlive it."""
    if slot.dtype != torch.int32 or slot.device != features.device:
        raise ValueError(f"slot must be int32 on {features.device}, got {slot.dtype} on {slot.device}")
    return Pixels(address(features), address(slot), *features.shape, num_segments, *place(features))


def workspace(like: Tensor, measure: Callable[..., None], *arguments: object) -> Tensor:
    """Return as many bytes as `measure`, a function of the library, asks for, on the device of a tensor."""
    size = c_int64()
    measure(*arguments, byref(size))
    return torch.empty(size.value, dtype=torch.uint8, device=like.device)
