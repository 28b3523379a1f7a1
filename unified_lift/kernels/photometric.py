"""The colour loss of 3D-GS, (1 - lambda) L1 + lambda (1 - SSIM): its definition, its kernels, and a quick backward."""

import functools
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
from diff_gaussian_rasterization.native import CPU, CUDA, PLACE, address, pick, place
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d


class _Problem(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("image", "target", "valid", "maps", "parts", "loss")),
        *((name, c_int32) for name in ("width", "height", "bytes")),
        ("share", c_float),
    ]


CPU.declare({"dgr_ssim": [c_void_p] * 2 + [c_int32] * 3 + [c_void_p]}, returns=c_double)
CPU.declare({"dgr_ssim_backward": [c_void_p] * 3 + [c_int32] * 3 + [c_float, c_void_p]}, returns=c_int32)
CUDA.declare({"dgr_cuda_photometric_parts": [c_int32, c_int32, POINTER(c_int64)]}, returns=None)
CUDA.declare({"dgr_cuda_photometric": [POINTER(_Problem), *PLACE]})
CUDA.declare({"dgr_cuda_photometric_backward": [POINTER(_Problem), c_void_p, c_void_p, *PLACE]})


def photometric_loss(
    image: Tensor, target: Tensor, *, lambda_dssim: float, valid: Tensor | None = None, implementation: str = "auto"
) -> Tensor:
    """Return (1 - lambda) * L1 + lambda * (1 - SSIM), a scalar.

    Source: 3D Gaussian Splatting (Kerbl et al. 2023), Eq. 7; SSIM as in `ssim`.
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
    loss = pick(implementation, image, reference=_defined, cpu=_on_cpu, cuda=_FusedLoss.apply)
    return loss(image, target, valid, lambda_dssim)


def ssim(image: Tensor, target: Tensor, *, implementation: str = "auto") -> Tensor:
    """Return the mean structural similarity of two images, a scalar in [-1, 1].

    Source: Wang et al. 2004; 11x11 Gaussian window of sigma 1.5, zero padding, mean over pixels and channels, as 3DGS;
        C1 = 0.01^2, C2 = 0.03^2.
    Raises:
        ValueError: The images, values in [0, 1], differ in shape or dtype or are not [H, W, 3].
    Gradient: to image only.
    """
    _require_images(image, target)
    if image.dtype != target.dtype:
        raise ValueError(f"image and target must have one dtype, got {image.dtype} and {target.dtype}")
    return pick(implementation, image, reference=_ssim, cpu=_CpuSsim.apply, cuda=_fused_ssim)(image, target.detach())


def backward(total: Tensor) -> None:
    """Do what `total.backward()` does, on the calling thread.

    On a GPU autograd's own threads take longer to wake up than a training step. Where `total` is `photometric_loss` of
    a leaf and nothing else, autograd is not asked at all.
    """
    node, leaf = total.grad_fn, None
    if node is not None and isinstance(getattr(node, "problem", None), _Problem):
        leaf = getattr(node.next_functions[0][0], "variable", None)
    if leaf is not None and leaf.grad is None and not leaf._backward_hooks:
        leaf.grad = _fused_gradient(node, None)
    else:
        with torch.autograd.set_multithreading_enabled(not total.is_cuda):
            total.backward()


def _require_images(image: Tensor, target: Tensor) -> None:
    if image.ndim != 3 or image.shape[-1] != 3 or image.shape != target.shape:
        raise ValueError(f"image and target must both be [H, W, 3], got {list(image.shape)} and {list(target.shape)}")


def _ssim(image: Tensor, target: Tensor) -> Tensor:
    x = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(x**2) / (2 * 1.5**2))
    window = (window / window.sum()).to(image)
    kernel = (window[:, None] * window[None])[None, None].expand(3, 1, -1, -1)

    def filtered(value: Tensor) -> Tensor:
        return conv2d(value.permute(2, 0, 1)[None], kernel, padding=5, groups=3)

    mu_x, mu_y = filtered(image), filtered(target)
    var_x = filtered(image * image) - mu_x**2
    var_y = filtered(target * target) - mu_y**2
    cov = filtered(image * target) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    return value.mean()


def _defined(
    image: Tensor, target: Tensor, valid: Tensor | None, lambda_dssim: float, similarity: Callable[..., Tensor] = _ssim
) -> Tensor:
    target = target.detach()
    target = target.to(image.dtype) / 255 if target.dtype == torch.uint8 else target
    if valid is not None:
        image, target = image * valid[..., None], target * valid[..., None]
    l1 = (image - target).abs().mean()
    if lambda_dssim == 0:
        return l1
    return (1 - lambda_dssim) * l1 + lambda_dssim * (1 - similarity(image, target))


class _CpuSsim(Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor) -> Tensor:
        image, target = image.detach().contiguous(), target.contiguous()
        maps = torch.empty(3, *image.shape) if ctx.needs_input_grad[0] else None
        ctx.dense, size = (image, target, maps), (image.shape[1], image.shape[0], torch.get_num_threads())
        total = CPU.dgr_ssim(address(image), address(target), *size, address(maps))
        return torch.tensor(total / image.numel(), dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None]:
        image = ctx.dense[0]
        grad, size = torch.empty_like(image), (image.shape[1], image.shape[0], torch.get_num_threads())
        scale = float(incoming) / image.numel()
        if CPU.dgr_ssim_backward(*map(address, ctx.dense), *size, scale, address(grad)) != 0:
            raise MemoryError("not enough memory for the gradient of SSIM")
        return grad, None


_on_cpu = functools.partial(_defined, similarity=_CpuSsim.apply)


@functools.lru_cache(maxsize=256)
def _num_parts(width: int, height: int) -> int:
    """Return how many floats the kernel needs for the sums of its blocks."""
    size = c_int64()
    CUDA.dgr_cuda_photometric_parts(width, height, byref(size))
    return size.value


class _FusedLoss(Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor, valid: Tensor | None, lambda_dssim: float) -> Tensor:
        image, target = image.contiguous(), target.contiguous()
        valid = None if valid is None else valid.contiguous()
        height, width = image.shape[:2]
        maps = image.new_empty(3, *image.shape) if ctx.needs_input_grad[0] else None
        parts, loss = image.new_empty(_num_parts(width, height)), image.new_empty(())
        ctx.memory = (image, target, valid, maps)
        ctx.problem = _Problem(
            *map(address, (*ctx.memory, parts, loss)), width, height, target.dtype == torch.uint8, lambda_dssim
        )
        CUDA.dgr_cuda_photometric(byref(ctx.problem), *place(image))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        return _fused_gradient(ctx, incoming.contiguous()), None, None, None


def _fused_gradient(ctx: Any, incoming: Tensor | None) -> Tensor:
    """Return `incoming` (None: 1) times the derivative by the image."""
    gradient = torch.empty_like(ctx.memory[0])
    CUDA.dgr_cuda_photometric_backward(byref(ctx.problem), address(incoming), address(gradient), *place(gradient))
    return gradient


def _fused_ssim(image: Tensor, target: Tensor) -> Tensor:
    return 1 - _FusedLoss.apply(image, target, None, 1.0)
