"""The colour loss, SSIM among it."""

from __future__ import annotations

import functools
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .binding import PLACE, address, bind, check, place


class Photometric(Structure):
    """The colour loss of one image."""

    _fields_ = [
        *((name, c_void_p) for name in ("image", "target", "valid", "maps", "parts", "loss")),
        *((name, c_int32) for name in ("width", "height", "bytes")),
        ("share", c_float),
    ]


_lib = bind(
    {
        "dgr_cuda_photometric_parts": [c_int32, c_int32, POINTER(c_int64)],
        "dgr_cuda_photometric": [POINTER(Photometric), *PLACE],
        "dgr_cuda_photometric_backward": [POINTER(Photometric), c_void_p, c_void_p, *PLACE],
    },
    silent=("dgr_cuda_photometric_parts",),
)


@functools.lru_cache(maxsize=256)
def num_parts(width: int, height: int) -> int:
    """Return how many floats the kernel needs for the sums of its blocks."""
    size = c_int64()
    _lib.dgr_cuda_photometric_parts(width, height, byref(size))
    return size.value


class _Loss(Function):
    @staticmethod
    def forward(ctx, image: Tensor, target: Tensor, valid: Tensor | None, lambda_dssim: float) -> Tensor:
        image, target = image.contiguous(), target.contiguous()
        valid = None if valid is None else valid.contiguous()
        height, width = image.shape[:2]
        maps = image.new_empty(3, *image.shape) if ctx.needs_input_grad[0] else None
        parts, loss = image.new_empty(num_parts(width, height)), image.new_empty(())
        ctx.memory = (image, target, valid, maps)
        ctx.problem = Photometric(
            *map(address, (*ctx.memory, parts, loss)), width, height, target.dtype == torch.uint8, lambda_dssim
        )
        check(_lib.dgr_cuda_photometric(byref(ctx.problem), *place(image)))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient(ctx, incoming.contiguous()), None, None, None


def _gradient(ctx: object, incoming: Tensor | None) -> Tensor:
    """Return `incoming` (None: 1) times the derivative by the image."""
    gradient = torch.empty_like(ctx.memory[0])
    arguments = (byref(ctx.problem), address(incoming), address(gradient))
    check(_lib.dgr_cuda_photometric_backward(*arguments, *place(gradient)))
    return gradient


def differentiate(total: Tensor) -> bool:
    """Do what `total.backward()` does if `total` is nothing but the colour loss of a leaf, else return False."""
    node = total.grad_fn
    if not isinstance(getattr(node, "problem", None), Photometric):
        return False
    leaf = getattr(node.next_functions[0][0], "variable", None)
    if leaf is None or leaf.grad is not None or leaf._backward_hooks:
        return False
    leaf.grad = _gradient(node, None)
    return True


def photometric_loss(image: Tensor, target: Tensor, *, lambda_dssim: float, valid: Tensor | None) -> Tensor:
    """Return (1 - lambda) L1 + lambda (1 - SSIM), a scalar; arguments as in `training.photometric_loss`."""
    return _Loss.apply(image, target, valid, lambda_dssim)


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Return mean SSIM of two images [H, W, 3], a scalar; differentiable in the image."""
    return 1 - _Loss.apply(image, target, None, 1.0)
