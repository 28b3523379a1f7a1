"""Neighbours of the rasterizer that bound training: the photometric loss, SSIM, and the Adam step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _backend


def photometric_loss(
    image: Tensor,
    target: Tensor,
    *,
    lambda_dssim: float,
    valid: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Return (1 - lambda) * L1 + lambda * (1 - SSIM), a scalar.

    Source: 3D Gaussian Splatting (Kerbl et al. 2023), Eq. 7; SSIM as in `fused_ssim`.
    Args:
        image: Rendered colour, not clamped, [H, W, 3].
        target: Photo, uint8 or values in [0, 1], [H, W, 3].
        lambda_dssim: Share of 1 - SSIM, in [0, 1].
        valid: Pixels that count, bool [H, W]; the others are black in both images, as SSIM's padding is. None = all.
        implementation: "auto", "reference", "cpu" or "cuda".
    Raises:
        ValueError: The images differ in shape or are not [H, W, 3], or `valid` is not bool [H, W].
    Gradient: to image only.
    """
    _require_images(image, target)
    if valid is not None and (valid.dtype != torch.bool or valid.shape != image.shape[:2]):
        raise ValueError(f"valid must be bool {list(image.shape[:2])}, got {valid.dtype} {list(valid.shape)}")
    module = _backend.select(implementation, image)
    if hasattr(module, "photometric_loss"):
        return module.photometric_loss(image, target.detach(), lambda_dssim=lambda_dssim, valid=valid)
    target = target.to(image.dtype) / 255 if target.dtype == torch.uint8 else target
    if valid is not None:
        image, target = image * valid[..., None], target * valid[..., None]
    l1 = (image - target).abs().mean()
    if lambda_dssim == 0:
        return l1
    return (1 - lambda_dssim) * l1 + lambda_dssim * (1 - module.ssim(image, target))


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
    _require_images(image, target)
    if image.dtype != target.dtype:
        raise ValueError(f"image and target must have one dtype, got {image.dtype} and {target.dtype}")
    return _backend.select(implementation, image).ssim(image, target.detach())


def _require_images(image: Tensor, target: Tensor) -> None:
    if image.ndim != 3 or image.shape[-1] != 3 or image.shape != target.shape:
        raise ValueError(f"image and target must both be [H, W, 3], got {list(image.shape)} and {list(target.shape)}")


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
    _require_adam(param, grad, exp_avg, exp_avg_sq, step)
    _backend.select(implementation, param).adam_step(
        param, grad, exp_avg, exp_avg_sq, lr=lr, beta1=beta1, beta2=beta2, eps=eps, step=step
    )


@torch.no_grad()
def fused_adam_steps(
    tensors: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    *, lrs: Sequence[float], beta1: float, beta2: float, eps: float, steps: Sequence[int], implementation: str = "auto",
) -> None:  # fmt: skip
    """Do `fused_adam_step` on several parameters; on a GPU that is one launch instead of one per parameter.

    Args:
        tensors: (param, grad, exp_avg, exp_avg_sq) of each parameter, all on one device.
        lrs: Learning rate of each parameter.
        beta1, beta2, eps: As in `fused_adam_step`, shared.
        steps: Step of each parameter, from 1.
        implementation: "auto", "reference", "cpu" or "cuda".
    Raises:
        ValueError: As `fused_adam_step`; or the numbers of tensors, rates and steps differ; or devices or dtypes do.
    """
    if not len(tensors) == len(lrs) == len(steps):
        raise ValueError(f"got {len(tensors)} parameters, {len(lrs)} rates and {len(steps)} steps")
    if not tensors:
        return
    first = tensors[0][0]
    for four, step in zip(tensors, steps):
        _require_adam(*four, step)
        if any(t.device != first.device or t.dtype != first.dtype for t in four):
            raise ValueError(f"all tensors must be {first.dtype} on {first.device}, like the first")
    module = _backend.select(implementation, first)
    if hasattr(module, "adam_steps"):
        module.adam_steps(tensors, lrs=lrs, beta1=beta1, beta2=beta2, eps=eps, steps=steps)
        return
    for four, lr, step in zip(tensors, lrs, steps):
        module.adam_step(*four, lr=lr, beta1=beta1, beta2=beta2, eps=eps, step=step)


def _require_adam(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: int) -> None:
    for name, value in (("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        if value.shape != param.shape or value.dtype != param.dtype:
            raise ValueError(
                f"{name} must match param ({list(param.shape)}, {param.dtype}), got {list(value.shape)}, {value.dtype}"
            )
    if not (param.is_contiguous() and exp_avg.is_contiguous() and exp_avg_sq.is_contiguous()):
        raise ValueError("param, exp_avg and exp_avg_sq must be contiguous, because they are updated in place")
    if step < 1:
        raise ValueError(f"step counts from 1, got {step}")
