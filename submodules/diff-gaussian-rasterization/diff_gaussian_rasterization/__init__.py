"""Differentiable Gaussian splatting: one definition in torch and fast kernels that agree with it."""

from ._backend import backend_info
from .api import blend, pixel_weights, rasterize, splat
from .dropin import GaussianRasterizationSettings, GaussianRasterizer
from .step import TrainingStep
from .training import fused_adam_step, fused_adam_steps, fused_ssim, photometric_loss
from .types import AdamState, PixelWeights, RasterMeta, RasterOutput

__all__ = [
    "AdamState",
    "GaussianRasterizationSettings",
    "GaussianRasterizer",
    "PixelWeights",
    "RasterMeta",
    "RasterOutput",
    "TrainingStep",
    "backend_info",
    "blend",
    "fused_adam_step",
    "fused_adam_steps",
    "fused_ssim",
    "photometric_loss",
    "pixel_weights",
    "rasterize",
    "splat",
]
