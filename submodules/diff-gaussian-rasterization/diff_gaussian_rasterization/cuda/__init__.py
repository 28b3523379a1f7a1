"""The compiled implementation for float32 tensors on an NVIDIA GPU."""

from .rasterize import allow_matrix_units, constants, pixel_weights, rasterize
from .rows import blend, splat
from .training import adam_step, adam_steps, ssim

__all__ = [
    "adam_step",
    "adam_steps",
    "allow_matrix_units",
    "blend",
    "constants",
    "pixel_weights",
    "rasterize",
    "splat",
    "ssim",
]
