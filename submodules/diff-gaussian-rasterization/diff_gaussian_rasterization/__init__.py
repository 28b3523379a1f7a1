"""Differentiable Gaussian splatting: one definition in torch and fast kernels that agree with it."""

from . import native
from .adam import AdamState, adam_steps
from .api import blend, pixel_weights, rasterize, scatter
from .dropin import GaussianRasterizationSettings, GaussianRasterizer
from .native import backend_info
from .sampled import Sample, blend_sample, draw, scatter_sample
from .sight import in_sight
from .step import TrainingStep
from .types import PixelWeights, RasterMeta, RasterOutput

__all__ = [
    "AdamState",
    "GaussianRasterizationSettings",
    "GaussianRasterizer",
    "PixelWeights",
    "RasterMeta",
    "RasterOutput",
    "Sample",
    "TrainingStep",
    "adam_steps",
    "backend_info",
    "blend",
    "blend_sample",
    "draw",
    "in_sight",
    "native",
    "pixel_weights",
    "rasterize",
    "scatter",
    "scatter_sample",
]
