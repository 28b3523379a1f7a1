"""The colour loss, SSIM among it."""

from __future__ import annotations

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


def num_parts(width: int, height: int) -> int:
    """Return how many floats the kernel needs for the sums of its blocks."""
    size = c_int64()
    _lib.dgr_cuda_photometric_parts(width, height, byref(size))
    return size.value


def run(problem: Photometric, like: Tensor) -> None:
    """Fill loss, parts and maps."""
    check(_lib.dgr_cuda_photometric(byref(problem), *place(like)))


def run_backward(problem: Photometric, incoming: Tensor | None, gradient: int, like: Tensor) -> None:
    """Write `incoming` (None: 1) times the derivative by the image to the address `gradient`."""
    check(_lib.dgr_cuda_photometric_backward(byref(problem), address(incoming), gradient, *place(like)))


class _Loss(Function):
    @staticmethod
    def forward(ctx, image: Tensor, target: Tensor, valid: Tensor | None, lambda_dssim: float) -> Tensor:
        image, target = image.detach().contiguous(), target.contiguous()
        valid = None if valid is None else valid.contiguous()
        height, width = image.shape[:2]
        maps = image.new_empty(3, *image.shape) if ctx.needs_input_grad[0] else None
        parts, loss = image.new_empty(num_parts(width, height)), image.new_empty(())
        ctx.memory = (image, target, valid, maps)
        ctx.problem = Photometric(
            *(address(t) for t in (*ctx.memory, parts, loss)), width, height, target.dtype == torch.uint8, lambda_dssim
        )
        run(ctx.problem, image)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming: Tensor) -> tuple[Tensor | None, ...]:
        gradient = torch.empty_like(ctx.memory[0])
        run_backward(ctx.problem, incoming.contiguous(), address(gradient), gradient)
        return gradient, None, None, None


def photometric_loss(image: Tensor, target: Tensor, *, lambda_dssim: float, valid: Tensor | None) -> Tensor:
    """Return (1 - lambda) L1 + lambda (1 - SSIM), a scalar; arguments as in `training.photometric_loss`."""
    return _Loss.apply(image, target, valid, lambda_dssim)


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Return mean SSIM of two images [H, W, 3], a scalar; differentiable in the image."""
    return 1 - _Loss.apply(image, target, None, 1.0)
