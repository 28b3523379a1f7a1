"""Two neighbours of the rasterizer that bound training on a CPU: the SSIM of the photometric loss and the Adam step."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _backend


def fused_ssim(image: Tensor, target: Tensor, *, implementation: str = "auto") -> Tensor:
    """Return the mean structural similarity of two images, a scalar in [-1, 1].

    Source: Wang et al. 2004; 11x11 Gaussian window of sigma 1.5, zero padding, mean over pixels and channels, as 3DGS.
    Args:
        image: Values in [0, 1], [H, W, 3].
        target: Values in [0, 1], [H, W, 3].
        implementation: "auto", "reference", "cpu" or "cuda".
    Raises:
        ValueError: The images differ in shape or are not [H, W, 3].
    Gradient: to image only.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or image.shape != target.shape:
        raise ValueError(f"image and target must both be [H, W, 3], got {list(image.shape)} and {list(target.shape)}")
    if image.dtype != target.dtype:
        raise ValueError(f"image and target must have one dtype, got {image.dtype} and {target.dtype}")
    return _backend.select(implementation, image).ssim(image, target.detach())


@torch.no_grad()
def fused_adam_step(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor,
    *, lr: float, beta1: float, beta2: float, eps: float, step: int, implementation: str = "auto",
) -> None:  # fmt: skip
    """Update a parameter and its two moments in place by one Adam step.

    Source: Kingma and Ba 2015, Algorithm 1, in the form of torch.optim.Adam.
    Args:
        param, grad, exp_avg, exp_avg_sq: Contiguous tensors of one shape and dtype.
        lr: Learning rate.
        beta1, beta2: Decay of the first and second moment.
        eps: Added to the bias-corrected root.
        step: 1 for the first step, as bias correction counts.
        implementation: "auto", "reference", "cpu" or "cuda".
    Raises:
        ValueError: Shapes or dtypes differ, a tensor is not contiguous, or step < 1.
    """
    for name, value in {"grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}.items():
        if value.shape != param.shape or value.dtype != param.dtype:
            raise ValueError(
                f"{name} must match param ({list(param.shape)}, {param.dtype}), got {list(value.shape)}, {value.dtype}"
            )
    if not all(t.is_contiguous() for t in (param, exp_avg, exp_avg_sq)):
        raise ValueError("param, exp_avg and exp_avg_sq must be contiguous, because they are updated in place")
    if step < 1:
        raise ValueError(f"step counts from 1, got {step}")
    _backend.select(implementation, param).adam_step(
        param, grad, exp_avg, exp_avg_sq, lr=lr, beta1=beta1, beta2=beta2, eps=eps, step=step
    )
