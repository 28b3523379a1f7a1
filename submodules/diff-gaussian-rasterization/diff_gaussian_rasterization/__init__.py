"""Differentiable Gaussian splatting: one definition in torch and fast kernels that agree with it."""

from . import lifting
from ._backend import backend_info
from .api import blend, pixel_weights, rasterize, splat
from .dropin import GaussianRasterizationSettings, GaussianRasterizer
from .step import TrainingStep
from .training import fused_adam_step, fused_adam_steps, fused_ssim, photometric_loss
from .types import AdamState, Association, PixelWeights, RasterMeta, RasterOutput, Sample

__all__ = [
    "AdamState",
    "Association",
    "GaussianRasterizationSettings",
    "GaussianRasterizer",
    "PixelWeights",
    "RasterMeta",
    "RasterOutput",
    "Sample",
    "TrainingStep",
    "backend_info",
    "blend",
    "fused_adam_step",
    "fused_adam_steps",
    "fused_ssim",
    "lifting",
    "photometric_loss",
    "pixel_weights",
    "rasterize",
    "splat",
]
