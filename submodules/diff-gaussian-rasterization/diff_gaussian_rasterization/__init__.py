"""Differentiable Gaussian splatting: one definition in torch and fast kernels that agree with it."""

from ._backend import backend_info
from .api import blend, pixel_weights, rasterize, splat
from .dropin import GaussianRasterizationSettings, GaussianRasterizer
from .training import fused_adam_step, fused_adam_steps, fused_ssim
from .types import PixelWeights, RasterMeta, RasterOutput

__all__ = [
    "GaussianRasterizationSettings",
    "GaussianRasterizer",
    "PixelWeights",
    "RasterMeta",
    "RasterOutput",
    "backend_info",
    "blend",
    "fused_adam_step",
    "fused_adam_steps",
    "fused_ssim",
    "pixel_weights",
    "rasterize",
    "splat",
]
