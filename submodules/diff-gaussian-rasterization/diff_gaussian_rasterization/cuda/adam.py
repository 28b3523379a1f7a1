"""Adam over whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, Structure, c_double, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from .binding import PLACE, address, bind, check, place


class Adam(Structure):
    """A parameter, its gradient and its moments."""

    _fields_ = [
        *((name, c_void_p) for name in ("param", "grad", "m", "v")),
        ("count", c_int64),
        ("lr", c_double),
        ("step", c_int64),
    ]


_lib = bind({"dgr_cuda_adam": [POINTER(Adam), c_int32] + [c_double] * 3 + [c_void_p, *PLACE]})


def adam_step(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor,
    *, lr: float, beta1: float, beta2: float, eps: float, step: int,
) -> None:  # fmt: skip
    """Update a parameter and its moments in place by one Adam step with bias correction."""
    adam_steps([(param, grad, exp_avg, exp_avg_sq)], lrs=[lr], beta1=beta1, beta2=beta2, eps=eps, steps=[step])


def adam_steps(
    tensors: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    *, lrs: Sequence[float], beta1: float, beta2: float, eps: float, steps: Sequence[int], loss: Tensor | None = None,
) -> None:  # fmt: skip
    """Update several parameters (param, grad, exp_avg, exp_avg_sq) in one launch; none if `loss` is not finite."""
    dense = [(param, grad.contiguous(), first, second) for param, grad, first, second in tensors]
    structs = (Adam * len(dense))(
        *((*(t.data_ptr() for t in four), four[0].numel(), lr, step) for four, lr, step in zip(dense, lrs, steps))
    )
    check(_lib.dgr_cuda_adam(structs, len(dense), beta1, beta2, eps, address(loss), *place(dense[0][0])))
    torch.autograd.graph.increment_version([t for param, _, *moments in tensors for t in (param, *moments)])
