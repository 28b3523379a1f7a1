"""The Adam step, which a training step ends with: its definition and its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, Structure, c_double, c_int32, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from .native import CPU, CUDA, PLACE, address, pick, place


class AdamState(NamedTuple):
    """What Adam knows of one parameter."""

    exp_avg: Tensor  # first moment, contiguous, of the parameter's shape
    exp_avg_sq: Tensor  # second moment, likewise
    lr: float
    step: int  # number of this step, 1 for the first, as bias correction counts


class AdamStruct(Structure):
    """A parameter, its gradient and its moments, as in csrc/cuda/dgr_cuda.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("param", "grad", "m", "v")),
        ("count", c_int64),
        ("lr", c_double),
        ("step", c_int64),
    ]


Update = tuple[Tensor, Tensor, AdamState]
CPU.declare({"dgr_adam": [c_void_p] * 4 + [c_int64] + [c_double] * 4 + [c_int64, c_int32]}, returns=None)
CUDA.declare({"dgr_cuda_adam": [POINTER(AdamStruct), c_int32] + [c_double] * 3 + [c_void_p, *PLACE]})


@torch.no_grad()
def adam_steps(
    updates: Sequence[Update], *, beta1: float, beta2: float, eps: float, implementation: str = "auto"
) -> None:
    """Update parameters and their moments in place by one Adam step each; on a GPU that is one launch for all.

    Source: Kingma and Ba 2015, Algorithm 1, with eps added after the bias-corrected root as in torch.optim.Adam.
    Args:
        updates: (parameter, gradient, state) of each, all on one device and of one dtype.
        beta1, beta2: Decay of the first and second moment.
        eps: Added to the bias-corrected root.
        implementation: "auto", "reference", "cpu" or "cuda".
    Raises:
        ValueError: Shapes, dtypes or devices differ, a tensor is not contiguous, or a step is below 1.
    """
    for param, grad, state in updates:
        for name, value in (("grad", grad), ("exp_avg", state.exp_avg), ("exp_avg_sq", state.exp_avg_sq)):
            if value.shape != param.shape:
                raise ValueError(f"{name} must match param {list(param.shape)}, got {list(value.shape)}")
        first = updates[0][0]
        for value in (param, grad, *state[:2]):
            if value.device != first.device or value.dtype != first.dtype:
                raise ValueError(f"all tensors must be {first.dtype} on {first.device}, like the first")
        if not all(t.is_contiguous() for t in (param, *state[:2])):
            raise ValueError("param, exp_avg and exp_avg_sq must be contiguous, because they are updated in place")
        if state.step < 1:
            raise ValueError(f"step counts from 1, got {state.step}")
    if updates:
        steps = pick(implementation, updates[0][0], reference=_defined_steps, cpu=_cpu_steps, cuda=fused_steps)
        steps(updates, beta1=beta1, beta2=beta2, eps=eps)


def _defined_steps(updates: Sequence[Update], *, beta1: float, beta2: float, eps: float) -> None:
    for param, grad, (exp_avg, exp_avg_sq, lr, step) in updates:
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
        param.addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**step))


def _cpu_steps(updates: Sequence[Update], *, beta1: float, beta2: float, eps: float) -> None:
    for param, grad, (exp_avg, exp_avg_sq, lr, step) in updates:
        grad = grad.contiguous()
        CPU.dgr_adam(
            *map(address, (param, grad, exp_avg, exp_avg_sq)), param.numel(), lr, beta1, beta2, eps, step,
            torch.get_num_threads(),
        )  # fmt: skip
        torch.autograd.graph.increment_version([param, exp_avg, exp_avg_sq])


def fused_steps(
    updates: Sequence[Update], *, beta1: float, beta2: float, eps: float, loss: Tensor | None = None
) -> None:
    """Do `adam_steps` of checked tensors on a GPU; nothing moves if `loss` is given and not finite."""
    dense = [(param, grad.contiguous(), state) for param, grad, state in updates]
    structs = (AdamStruct * len(dense))(
        *((*map(address, (param, grad, *state[:2])), param.numel(), *state[2:]) for param, grad, state in dense)
    )
    CUDA.dgr_cuda_adam(structs, len(dense), beta1, beta2, eps, address(loss), *place(dense[0][0]))
    torch.autograd.graph.increment_version([t for param, _, state in updates for t in (param, *state[:2])])
