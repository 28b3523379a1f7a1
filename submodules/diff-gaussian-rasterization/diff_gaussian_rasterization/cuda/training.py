"""SSIM and Adam."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_double, c_int32, c_int64, c_void_p

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .library import PLACE, address, bind, check, place


class _Adam(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("param", "grad", "m", "v")),
        ("count", c_int64),
        ("lr", c_double),
        ("step", c_int64),
    ]


_lib = bind(
    {
        "dgr_cuda_adam": [POINTER(_Adam), c_int32] + [c_double] * 3 + PLACE,
        "dgr_cuda_ssim_parts": [c_int32, c_int32, POINTER(c_int64)],
        "dgr_cuda_ssim": [c_void_p, c_void_p, c_int32, c_int32, c_void_p, c_void_p, c_void_p, *PLACE],
        "dgr_cuda_ssim_backward": [c_void_p] * 3 + [c_int32, c_int32, c_void_p, c_void_p, *PLACE],
    },
    silent=("dgr_cuda_ssim_parts",),
)


class _Ssim(Function):
    @staticmethod
    def forward(ctx, image: Tensor, target: Tensor) -> Tensor:
        image, target = image.detach().contiguous(), target.contiguous()
        height, width = image.shape[:2]
        size = c_int64()
        _lib.dgr_cuda_ssim_parts(width, height, byref(size))
        maps = image.new_empty(3, *image.shape) if ctx.needs_input_grad[0] else None
        parts, out = image.new_empty(size.value), image.new_empty(())
        addresses = (address(maps), address(parts), address(out))
        check(_lib.dgr_cuda_ssim(address(image), address(target), width, height, *addresses, *place(image)))
        ctx.dense = (image, target, maps)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, incoming: Tensor) -> tuple[Tensor, None]:
        image, target, maps = ctx.dense
        height, width = image.shape[:2]
        incoming, grad = incoming.contiguous(), torch.empty_like(image)
        addresses = (address(image), address(target), address(maps))
        status = _lib.dgr_cuda_ssim_backward(
            *addresses, width, height, address(incoming), address(grad), *place(image)
        )
        check(status)
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
    check(_lib.dgr_cuda_adam(structs, len(dense), beta1, beta2, eps, *place(dense[0][0])))
    torch.autograd.graph.increment_version([t for param, _, *moments in tensors for t in (param, *moments)])
